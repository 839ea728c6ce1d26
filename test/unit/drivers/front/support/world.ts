import type { NbdFrontOptions } from "../../../../../src/drivers/front/nbd-front.js";
import type { ExportGrant } from "../../../../../src/ports/export-front.js";
import { startFront, type TestFront } from "../../../../support/front.js";
import { untilTestEnds } from "../../../../support/lifetime.js";
import {
  type Peer,
  type ScriptedExport,
  ScriptedServer,
} from "../../../nbd-client-ts/support/scripted-server.js";

/** Flags of a read-only export: HAS_FLAGS and READ_ONLY. */
export const READ_ONLY_FLAGS = 3;

/** A backend that plays a script to each of its clients; without one it echoes all bytes after the handshake. */
export async function backend(script: (peer: Peer) => Promise<void> = echo()): Promise<ScriptedServer> {
  return untilTestEnds(await ScriptedServer.start(script));
}

export function echo(offered: ScriptedExport = {}): (peer: Peer) => Promise<void> {
  return async (peer) => {
    await peer.enter({ transmissionFlags: READ_ONLY_FLAGS, contexts: { 7: "base:allocation" }, ...offered });
    for (;;) await peer.send(await peer.receive(1));
  };
}

export interface World extends TestFront {
  readonly server: ScriptedServer;
  readonly grant: (changes?: Partial<ExportGrant>) => void;
}

/** A front in clear with an export `open` for everybody. */
export async function world(
  options: Partial<NbdFrontOptions> = {},
  script?: (peer: Peer) => Promise<void>,
): Promise<World> {
  const server = await backend(script);
  const started = await startFront(options);
  const grant = (changes: Partial<ExportGrant> = {}) =>
    started.front.grant({
      exportName: "open",
      backend: { socketPath: server.socketPath, exportName: "private" },
      clients: "any",
      idleMs: 3_600_000,
      ...changes,
    });
  grant();
  return { ...started, server, grant };
}
