import { FleeceError } from "../shared/errors.js";
import type { HostPort } from "./host-port.js";
import { formatHostPort, parseHostPort } from "./host-port.js";
import { checkFilePath } from "./paths.js";

/** Where clients of the front meet it. */
export type FrontAddress = HostPort | { readonly socketPath: string };

/** An export that is offered through the front, too. */
export interface FrontOffer {
  readonly address: FrontAddress;
  /**
   * Who may read, sorted: certificates by common name or by `sha256:` and hexadecimal digits. `any`: everybody who can
   * connect; at a TCP address only without TLS.
   */
  readonly clients: "any" | readonly string[];
}

/** `tcp:HOST:PORT` or `unix:/path`. Fails with INVALID_ARGUMENT. */
export function parseFrontAddress(text: string): FrontAddress {
  const [, scheme, rest = ""] = /^(tcp|unix):(.*)$/s.exec(text) ?? [];
  if (scheme === "unix") return { socketPath: checkFilePath("a Unix socket", rest) };
  const address = scheme === "tcp" ? parseHostPort(rest) : undefined;
  if (address !== undefined && address.port > 0) return address;
  const expected = "tcp:HOST:PORT (an IPv6 address in brackets) or unix:/path";
  throw new FleeceError("INVALID_ARGUMENT", `Expected an address like ${expected}, got ${shown(text)}`);
}

export function formatFrontAddress(address: FrontAddress): string {
  return "socketPath" in address ? `unix:${address.socketPath}` : `tcp:${formatHostPort(address)}`;
}

/** The same text for addresses that are the same. */
export function frontKey(address: FrontAddress): string {
  const text = formatFrontAddress(address);
  return "socketPath" in address ? text : text.toLowerCase();
}

/** A front may have exports of several domains, and every domain its disk `vda`. */
export function frontExportName(domain: string, exportName: string): string {
  return `${domain}/${exportName}`;
}

/** Sorted, each once. Fails with INVALID_ARGUMENT. */
export function parseFrontClients(clients: readonly string[]): readonly string[] {
  return [...new Set(clients.map(parseFrontClient))].toSorted();
}

/** Fingerprints come as openssl and others print them; common names have 64 characters at most. */
function parseFrontClient(text: string): string {
  if (/^sha256:/i.test(text)) {
    const digits = text.slice("sha256:".length).replaceAll(":", "").toLowerCase();
    if (/^[0-9a-f]{64}$/.test(digits)) return `sha256:${digits}`;
  } else if (/^\P{C}{1,64}$/u.test(text)) {
    return text;
  }
  throw new FleeceError(
    "INVALID_ARGUMENT",
    `Expected a client by the common name of its certificate or by sha256: and its fingerprint, got ${shown(text)}`,
  );
}

function shown(text: string): string {
  return JSON.stringify(text.length > 100 ? `${text.slice(0, 100)}…` : text);
}
