import { readFile } from "node:fs/promises";
import { connectQmp, isQmpError, type QmpConnectOptions, type QmpSession } from "../../../src/qmp/index.js";
import { BoundProcess } from "../../support/bound-process.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import type { TemporaryDirectory } from "../../support/temporary-directory.js";

/** Ends a start that hangs. */
const startTimeoutMs = 60_000;

export interface RunningPeer {
  readonly process: BoundProcess;
  readonly directory: TemporaryDirectory;
  readonly socketPath: string;
}

export type PeerKind = "qemu-system-x86_64" | "qemu-storage-daemon";

export interface PeerOptions {
  readonly monitorOptions?: string;
  /** A node that the typed table cannot make, in the command line's syntax. */
  readonly blockdev?: string;
}

function argumentsFor(kind: PeerKind, socketPath: string, options: PeerOptions): string[] {
  const monitorOptions = options.monitorOptions ?? "";
  const blockdev = options.blockdev === undefined ? [] : ["--blockdev", options.blockdev];
  const chardev = [...blockdev, "--chardev", `socket,id=qmp,path=${socketPath},server=on,wait=off`];
  return kind === "qemu-storage-daemon"
    ? [...chardev, "--monitor", `chardev=qmp${monitorOptions}`]
    : [
        ...["-machine", "none", "-nodefaults", "-display", "none", "-S", ...chardev],
        ...["-mon", `chardev=qmp,mode=control${monitorOptions}`],
      ];
}

/** The file exists a moment before QEMU listens, and connecting to find out would take the monitor's only place. */
async function isListening(socketPath: string): Promise<boolean> {
  const acceptingConnections = "00010000";
  const sockets = (await readFile("/proc/net/unix", "utf8")).split("\n").map((line) => line.split(" "));
  return sockets.some((fields) => fields.at(-1) === socketPath && fields[3] === acceptingConnections);
}

/** Starts a real peer without a guest and waits until its monitor listens. */
export async function startPeer(kind: PeerKind, options: PeerOptions = {}): Promise<RunningPeer> {
  const directory = await temporaryDirectory();
  const socketPath = directory.file("qmp");
  const process = untilTestEnds(await BoundProcess.start(kind, argumentsFor(kind, socketPath, options)));
  const deadline = AbortSignal.timeout(startTimeoutMs);
  while (!(await isListening(socketPath))) {
    if (!process.running || deadline.aborted) throw new Error(`${kind} did not start: ${process.stderr}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return { process, directory, socketPath };
}

export async function connectTo(
  peer: RunningPeer,
  options: Partial<QmpConnectOptions> = {},
): Promise<QmpSession> {
  for (;;) {
    try {
      return untilTestEnds(await connectQmp({ socketPath: peer.socketPath, ...options }));
    } catch (error) {
      // Under load a storage daemon that has just begun to listen may hang up: whoever starts one has to try again.
      if (!isQmpError(error, "QMP_DISCONNECTED") || !peer.process.running) throw error;
    }
  }
}

/** Makes a qcow2 image with QMP alone and opens it as node `name`. */
export async function addQcow2(
  peer: RunningPeer,
  session: QmpSession,
  name: string,
  sizeBytes: number,
): Promise<void> {
  const filename = peer.directory.file(`${name}.qcow2`);
  await session.runJob("blockdev-create", {
    "job-id": `${name}-file`,
    options: { driver: "file", filename, size: 0 },
  });
  await session.execute("blockdev-add", { driver: "file", filename, "node-name": `${name}-file` });
  await session.runJob("blockdev-create", {
    "job-id": `${name}-format`,
    options: { driver: "qcow2", file: `${name}-file`, size: sizeBytes },
  });
  await session.execute("blockdev-add", { driver: "qcow2", file: `${name}-file`, "node-name": name });
}

/** Resolves with what the promise rejects with. */
export async function failureOf(promise: Promise<unknown>): Promise<unknown> {
  return await promise.then(
    (value) => new Error(`Expected a failure, got ${JSON.stringify(value)}`),
    (error: unknown) => error,
  );
}
