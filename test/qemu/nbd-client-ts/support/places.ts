import type { NbdUri } from "nbd-client-ts";
import type { TemporaryDirectory } from "../../../support/temporary-directory.js";
import { freePort } from "./servers.js";

/** Where a server listens: a part of the URI, and how each server is told so. */
export interface Place {
  readonly uri: Pick<NbdUri, "host" | "port" | "socketPath">;
  readonly address: { readonly path: string } | { readonly host: string; readonly port: number };
  readonly nbdkit: string[];
  readonly qemuNbd: string[];
  readonly daemon: string;
}

export async function unixPlace(directory: TemporaryDirectory): Promise<Place> {
  const path = directory.file("s");
  return await Promise.resolve({
    uri: { socketPath: path },
    address: { path },
    nbdkit: ["-U", path],
    qemuNbd: ["-k", path],
    daemon: `addr.type=unix,addr.path=${path}`,
  });
}

export async function tcpPlace(): Promise<Place> {
  const address = { host: "127.0.0.1", port: await freePort() };
  return {
    uri: address,
    address,
    nbdkit: ["-i", address.host, "-p", `${address.port}`],
    qemuNbd: ["-b", address.host, "-p", `${address.port}`],
    daemon: `addr.type=inet,addr.host=${address.host},addr.port=${address.port}`,
  };
}
