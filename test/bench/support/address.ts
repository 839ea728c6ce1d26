import type { NbdConnectOptions } from "nbd-client-ts";

type Address = Pick<NbdConnectOptions, "exportName" | "socketPath" | "host" | "port">;

/** `nbd+unix:///NAME?socket=PATH`, `nbd://HOST[:PORT]/NAME`, or the bare path of a socket with one default export. */
export function parseAddress(text: string): Address {
  if (!text.includes("://")) return { socketPath: text, exportName: "" };
  const uri = new URL(text);
  const exportName = decodeURIComponent(uri.pathname.replace(/^\//, ""));
  const socketPath = uri.searchParams.get("socket");
  if (uri.protocol === "nbd+unix:" && socketPath !== null) return { socketPath, exportName };
  if (uri.protocol === "nbd:" && uri.hostname !== "") {
    const host = uri.hostname.replace(/^\[(.*)\]$/, "$1");
    return { host, exportName, ...(uri.port === "" ? {} : { port: Number(uri.port) }) };
  }
  throw new Error(`Expected an NBD URI or the path of a socket, got ${text}`);
}

/** The arguments of a script, after npm's `--`. */
export function argumentsOf(usage: string, minimum: number): string[] {
  const given = process.argv.slice(2);
  if (given.length >= minimum) return given;
  process.stderr.write(`usage: ${usage}\n`);
  process.exit(2);
}
