import { connectNbd, NbdError, type NbdConnection, type NbdConnectOptions } from "nbd-client-ts";
import { untilTestEnds } from "../../../support/lifetime.js";
import { ScriptedServer, type Peer, type ScriptedExport } from "./scripted-server.js";

export interface ConnectedOptions extends Partial<NbdConnectOptions> {
  readonly offered?: ScriptedExport;
}

/** A connection to a server that shakes hands correctly and then plays the script. */
export async function connected(
  script: (peer: Peer) => Promise<void>,
  { offered = {}, ...options }: ConnectedOptions = {},
): Promise<NbdConnection> {
  const server = await serving(async (peer) => {
    await peer.enter(offered);
    await script(peer);
  });
  const metaContexts = Object.values(offered.contexts ?? {});
  const connection = await connectNbd({
    socketPath: server.socketPath,
    exportName: "disk",
    metaContexts,
    ...options,
  });
  return untilTestEnds(new Destroyed(connection)).connection;
}

export async function serving(script: (peer: Peer) => Promise<void>): Promise<ScriptedServer> {
  return untilTestEnds(await ScriptedServer.start(script));
}

/** A test's end does not wait for replies that a scripted server will never send. */
class Destroyed implements AsyncDisposable {
  readonly connection: NbdConnection;

  constructor(connection: NbdConnection) {
    this.connection = connection;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.connection.destroy();
    await this.connection.closed;
  }
}

/** The error that a promise rejects with. */
export async function failureOf(promise: Promise<unknown>): Promise<NbdError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof NbdError) return error;
    throw error;
  }
  throw new Error("Expected a rejection");
}
