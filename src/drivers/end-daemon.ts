import { rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { FleeceError } from "../shared/errors.js";
import {
  findProcesses,
  isOwnerAlive,
  signalOwner,
  type FoundProcess,
  type ProcessOwner,
} from "./process-owner.js";

/** A daemon that has nothing to write back ends in milliseconds; one that hangs is not waited for longer. */
const TERM_TIMEOUT_MS = 5_000;
/** Only a process stuck in the kernel (dead storage) survives SIGKILL that long. */
const KILL_TIMEOUT_MS = 10_000;
/** The longest of the pauses between two looks; the first is of 1 ms. */
const POLL_MS = 10;

/** The argument by which a daemon is found again: its own directory is in it. */
export function monitorArgument(directory: string): string {
  return `socket,id=qmp,path=${escapeCommas(join(directory, "qmp.sock"))},server=on,wait=off`;
}

export function nbdServerArgument(socketPath: string): string {
  return `addr.type=unix,addr.path=${escapeCommas(socketPath)}`;
}

/** In QEMU's option strings a comma ends a value unless it is doubled. */
function escapeCommas(value: string): string {
  return value.replaceAll(",", ",,");
}

export interface FoundDaemon extends FoundProcess {
  readonly nbdSocketPath: string;
}

/** The living storage daemons that were started in `directory`: one, or none. */
export async function findDaemons(directory: string): Promise<FoundDaemon[]> {
  const monitor = monitorArgument(directory);
  const found = await findProcesses((args) => args.includes("qemu-storage-daemon") && args.includes(monitor));
  return found.map((daemon) => ({ ...daemon, nbdSocketPath: nbdSocketOf(daemon.args, directory) }));
}

function nbdSocketOf(args: readonly string[], directory: string): string {
  const argument = args[args.indexOf("--nbd-server") + 1];
  const [, path] = /^addr\.type=unix,addr\.path=(.*)$/s.exec(argument ?? "") ?? [];
  return path?.replaceAll(",,", ",") ?? join(directory, "nbd.sock");
}

/**
 * Ends the daemon that was started in `directory` by this or any earlier process, then removes the directory and its
 * sockets. Idempotent. Fails with CLEANUP_INCOMPLETE if the process cannot be ended.
 */
export async function endDaemon(directory: string, how: EndProcessOptions = {}): Promise<void> {
  for (const daemon of await findDaemons(directory)) {
    await endProcess(daemon, how);
    await rm(daemon.nbdSocketPath, { force: true });
  }
  await rm(directory, { recursive: true, force: true });
}

export interface EndProcessOptions {
  /** Nothing that it holds is wanted any more, so it gets no time to end by itself. */
  readonly atOnce?: boolean;
  /** How long it may write back what it holds, in milliseconds. Default: 5000. */
  readonly termTimeoutMs?: number;
}

/** SIGTERM, then SIGKILL after a while; resolves when the process is gone. */
export async function endProcess(
  owner: ProcessOwner,
  { atOnce = false, termTimeoutMs = TERM_TIMEOUT_MS }: EndProcessOptions = {},
): Promise<void> {
  for (const [signal, timeoutMs] of [
    ...(atOnce ? [] : [["SIGTERM", termTimeoutMs] as const]),
    ["SIGKILL", KILL_TIMEOUT_MS] as const,
  ]) {
    signalOwner(owner, signal);
    const deadline = performance.now() + timeoutMs;
    for (let pauseMs = 1; isOwnerAlive(owner) && performance.now() < deadline; pauseMs *= 2) {
      await delay(Math.min(pauseMs, POLL_MS));
    }
    if (!isOwnerAlive(owner)) return;
  }
  throw new FleeceError(
    "CLEANUP_INCOMPLETE",
    `Process ${owner.pid} did not end within ${KILL_TIMEOUT_MS / 1000} s of SIGKILL; its storage may hang`,
    { facts: { pid: owner.pid } },
  );
}
