import * as z from "zod";

/** Where metrics are served. */
export type MetricsAddress = { readonly path: string } | { readonly host: string; readonly port: number };

/** `unix:/path`, `127.0.0.1:9108` or `[::1]:9108`; undefined for anything else. Hosts are addresses: nothing is looked up. */
export function parseMetricsAddress(text: string): MetricsAddress | undefined {
  const [, path] = /^unix:(\/[^\0]+)$/.exec(text) ?? [];
  if (path !== undefined) return { path };
  const [, bracketed, plain, digits] = /^(?:\[([\da-f:]+)\]|([\d.]+)):(\d{1,5})$/i.exec(text) ?? [];
  const host = bracketed ?? plain ?? "";
  const port = Number(digits);
  const kind = bracketed === undefined ? z.ipv4() : z.ipv6();
  return kind.safeParse(host).success && port <= 65_535 ? { host, port } : undefined;
}

/** Whether only processes of this host can come there. */
export function isLocal(address: MetricsAddress): boolean {
  return "path" in address || address.host === "::1" || address.host.startsWith("127.");
}
