import { connect, createServer, type NetConnectOpts } from "node:net";
import { connectNbd, type NbdConnection, type NbdConnectOptions } from "nbd-client-ts";
import { BoundProcess } from "../../../support/bound-process.js";
import { untilTestEnds } from "../../../support/lifetime.js";

/** How long a server may take until it listens. */
const START_MS = 20_000;

export interface ServerProcess {
  readonly process: BoundProcess;
  readonly socketPath: string;
}

/** qemu-nbd that stays until the end of the test. The export is called `disk`. */
export async function qemuNbd(socketPath: string, ...args: string[]): Promise<ServerProcess> {
  return await startServer(
    "qemu-nbd",
    ["-t", "-e", "8", "-x", "disk", "-k", socketPath, ...args],
    socketPath,
  );
}

/** A storage daemon; its arguments say which exports its NBD server, on `socketPath`, has. */
export async function storageDaemon(socketPath: string, ...args: string[]): Promise<ServerProcess> {
  const server = `addr.type=unix,addr.path=${socketPath},max-connections=0`;
  return await startServer("qemu-storage-daemon", ["--nbd-server", server, ...args], socketPath);
}

/** One nbdkit per test: 1.32 aborts when a client vanishes with reads in flight. */
export async function nbdkit(socketPath: string, ...args: string[]): Promise<ServerProcess> {
  return await startServer("nbdkit", ["-f", "-U", socketPath, ...args], socketPath);
}

async function startServer(command: string, args: string[], socketPath: string): Promise<ServerProcess> {
  return { process: await startListening(command, args, { path: socketPath }), socketPath };
}

/** Starts a server that stays until the end of the test; resolves when it accepts. */
export async function startListening(
  command: string,
  args: string[],
  address: { readonly path: string } | { readonly host: string; readonly port: number },
): Promise<BoundProcess> {
  const process = untilTestEnds(await BoundProcess.start(command, args));
  await untilListening(process, address);
  return process;
}

/** A port of 127.0.0.1 that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("The server has no port");
  return address.port;
}

/** Tries until a server accepts, or its process has ended. */
async function untilListening(process: BoundProcess, address: NetConnectOpts): Promise<void> {
  const deadline = AbortSignal.timeout(START_MS);
  while (!deadline.aborted) {
    const accepted = await new Promise<boolean>((resolve) => {
      const socket = connect(address);
      socket.on("connect", () => socket.end(() => resolve(true)));
      socket.on("error", () => resolve(false));
    });
    if (accepted) return;
    if (!process.running) break;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`The server does not listen on ${JSON.stringify(address)}: ${process.stderr}`);
}

/** A connection to the export `disk` that is closed at the end of the test. */
export async function connection(
  server: ServerProcess,
  options: Partial<NbdConnectOptions> = {},
): Promise<NbdConnection> {
  return untilTestEnds(await connectNbd({ socketPath: server.socketPath, exportName: "disk", ...options }));
}
