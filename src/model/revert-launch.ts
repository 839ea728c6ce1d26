import { resolve } from "node:path";
import { FleeceError } from "../shared/errors.js";
import {
  type DomainSnapshots,
  filesOfDisk,
  type RevertDomainSnapshotRequest,
  type SnapshotState,
} from "./domain-snapshot.js";
import { type ReplacedDisk, rewriteArguments } from "./machine-arguments.js";
import { machineEnds, type MovedPath, movedPaths } from "./machine-ends.js";
import type { MachineProcess, MachineStart } from "./machine-start.js";
import type { RevertJournal } from "./operation.js";
import type { RevertedDisk, RevertFacts } from "./revert-plan.js";

/** Which QEMU has the domain after a revert, and how it gets there. */
export interface RevertLaunch {
  readonly to: SnapshotState;
  /** Left out if no QEMU is started. */
  readonly start?: MachineStart;
  readonly moved: readonly MovedPath[];
  /** Where the old QEMU's monitor is meanwhile. */
  readonly guardPath?: string | undefined;
  /** Set if the old QEMU is to end first: how the domain goes on if the new one then cannot take over. */
  readonly again?: RevertJournal["again"];
}

export interface LaunchWishes {
  /** Of the revert; names of moved sockets have it. */
  readonly id: string;
  readonly request: RevertDomainSnapshotRequest;
  readonly disks: readonly RevertedDisk[];
  /** What the configuration has: arguments that replace all others, and the socket that QEMU must listen on. */
  readonly settings: { readonly launch?: readonly string[]; readonly monitor?: string };
  /** The QEMU that runs now, if one does. */
  readonly old: { readonly process: MachineProcess; readonly isRunning: boolean } | undefined;
}

/** unix(7). */
const MAX_SOCKET_PATH_BYTES = 107;

/** Fails with UNSUPPORTED if no QEMU can be started that the domain could be reached in. */
export function planLaunch(facts: RevertFacts, wishes: LaunchWishes): RevertLaunch {
  const { all, snapshot } = facts;
  const { domain } = all;
  const { request, old, settings } = wishes;
  const to = request.to ?? snapshot.state;
  if (to === "inactive") return { to, moved: [] };
  const given = givenArguments(facts, wishes);
  if (given === undefined) {
    // Of an inactive domain only the disks go back, unless more was asked for.
    if (request.to === undefined) return { to: "inactive", moved: [] };
    throw unsupported(
      domain,
      `Domain ${domain} cannot be started: it does not run, and the configuration has no \`launch\` for it`,
    );
  }
  const cwd = settings.launch === undefined ? (old?.process.cwd ?? "/") : "/";
  const args = argumentsOnOverlays(facts, wishes.disks, given, cwd);
  const { paths } = checkEnds(domain, args, cwd, wishes);
  const again = request.quitFirst === true ? planAgain(facts, old) : undefined;
  const keepsOld = old !== undefined && again === undefined;
  const held = keepsOld ? machineEnds(old.process.arguments, old.process.cwd).paths : [];
  const moved = movedPaths(
    paths.filter((path) => held.includes(path)),
    wishes.id,
  );
  const like = old === undefined ? undefined : { ...old.process, cwd };
  const memory = snapshot.memory?.kind === "external" ? { memory: snapshot.memory.file } : {};
  return {
    ...{ to, moved, again, guardPath: guardPathOf(domain, settings.monitor ?? "", moved) },
    start: { domain, arguments: args, like, ...memory },
  };
}

/** Memory fits the machine that it was saved of; disks alone start with any. */
function givenArguments(
  { snapshot }: RevertFacts,
  { settings, old }: LaunchWishes,
): readonly string[] | undefined {
  const recorded = snapshot.machine?.arguments;
  const ofMemory = snapshot.memory === undefined ? undefined : recorded;
  return settings.launch ?? ofMemory ?? old?.process.arguments ?? recorded;
}

function argumentsOnOverlays(
  { all, snapshot }: RevertFacts,
  disks: readonly RevertedDisk[],
  given: readonly string[],
  cwd: string,
): string[] {
  const reverted = disks.map(({ disk: { target }, overlay }) => ({
    ...{ target, overlay, files: filesOfDisk(all, target) },
  }));
  const others = presentDisks(all).filter(({ target }) => !reverted.some((each) => each.target === target));
  return rewriteArguments(given, {
    disks: [...reverted, ...others],
    cwd,
    machineType: snapshot.machine?.type,
    incoming: snapshot.memory !== undefined,
  });
}

function checkEnds(
  domain: string,
  args: readonly string[],
  cwd: string,
  { old, request, settings: { monitor = "" } }: LaunchWishes,
): { readonly paths: readonly string[] } {
  const { inherited, exclusive, paths } = machineEnds(args, cwd);
  refuseInherited(domain, inherited);
  if (!paths.includes(resolve(monitor))) {
    throw unsupported(
      domain,
      `The arguments for the QEMU of domain ${domain} have no monitor on ${monitor}, so that it could not be reached`,
    );
  }
  if (old !== undefined && request.quitFirst !== true) {
    refuseUnstartable(
      domain,
      exclusive,
      "claim what the present QEMU has, so that both cannot be kept until the snapshot is loaded; quit-first ends the present one before",
    );
  }
  return { paths };
}

/** How the domain goes on if its QEMU has ended first and the new one cannot take over. */
function planAgain({ all, machine }: RevertFacts, old: LaunchWishes["old"]): RevertJournal["again"] {
  if (old === undefined) return undefined;
  const { domain } = all;
  const { arguments: given, cwd } = old.process;
  refuseInherited(domain, machineEnds(given, cwd).inherited);
  const args = rewriteArguments(given, {
    ...{ disks: presentDisks(all), cwd, incoming: false },
    machineType: machine?.type,
  });
  return {
    start: { domain, arguments: args, like: old.process },
    to: old.isRunning ? "running" : "paused",
  };
}

function guardPathOf(domain: string, monitor: string, moved: readonly MovedPath[]): string | undefined {
  const guardPath = moved.find(({ path }) => path === resolve(monitor))?.aside;
  if (guardPath === undefined || Buffer.byteLength(guardPath) <= MAX_SOCKET_PATH_BYTES) return guardPath;
  throw unsupported(
    domain,
    `The path of the monitor ${monitor} leaves no room for another name beside it: a socket's path has at most ${MAX_SOCKET_PATH_BYTES} bytes`,
  );
}

/** Arguments may name any file that the disk has had. */
function presentDisks(all: DomainSnapshots): readonly ReplacedDisk[] {
  return all.layers.map(({ target, active, format }) => ({
    ...{ target, format, overlay: active, files: filesOfDisk(all, target) },
  }));
}

function refuseInherited(domain: string, words: readonly string[]): void {
  refuseUnstartable(domain, words, "stand for files that only the former starter of QEMU had open");
}

function refuseUnstartable(domain: string, words: readonly string[], why: string): void {
  if (words.length === 0) return;
  throw unsupported(
    domain,
    `The QEMU of domain ${domain} cannot be started again: these arguments ${why}: ${words.join("; ")}`,
  );
}

function unsupported(domain: string, message: string): FleeceError {
  return new FleeceError("UNSUPPORTED", message, { facts: { domain } });
}
