import type { HostPort } from "../model/host-port.js";
import { formatHostPort } from "../model/host-port.js";

/**
 * As https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md has it. Slashes of the path may stay as they are;
 * everything else that RFC 3986 or a shell could take for its own is escaped.
 */
export function nbdUri(exportName: string, socketPath: string): string {
  return `nbd+unix:///${escapePath(exportName)}?socket=${escapePath(socketPath)}`;
}

/** The same over TCP. */
export function nbdTcpUri(exportName: string, address: HostPort, { tls }: { readonly tls: boolean }): string {
  return `${tls ? "nbds" : "nbd"}://${formatHostPort(address)}/${escapePath(exportName)}`;
}

function escapePath(text: string): string {
  return escape(text).replaceAll("%2F", "/");
}

/** `encodeURIComponent` leaves `!'()*` alone, which RFC 3986 reserves. */
function escape(text: string): string {
  return encodeURIComponent(text).replaceAll(
    /[!'()*]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}
