import { stat } from "node:fs/promises";
import { execa } from "execa";
import type { SnapshotVolume } from "../../model/domain-snapshot.js";
import type { LogicalVolume, PlannedVolume, VolumeReport } from "../../model/volumes.js";
import type { Volumes } from "../../ports/volumes.js";
import { errnoOf, type ErrorCode, fileError, FleeceError } from "../../shared/errors.js";
import { cleanOutput, toolMissing } from "../tool-failure.js";
import { isInvalid, kindOfVolume, LVS_ARGUMENTS, type LvsVolume, parseLvsReport } from "./lvs-report.js";

/** LVM's own programs, found on PATH. */
export const lvmVolumes: Volumes = { find, report, take, remove };

/** A command takes a fraction of a second, unless another one holds the volume group. */
const READ_WITHIN_MS = 30_000;
/** The guest waits for it. */
const CHANGE_WITHIN_MS = 10_000;

async function find(
  paths: readonly string[],
  signal?: AbortSignal,
): Promise<ReadonlyMap<string, LogicalVolume>> {
  const devices = new Map<string, string>();
  for (const path of paths) {
    const device = await deviceOf(path);
    if (device !== undefined) devices.set(path, device);
  }
  const found = new Map<string, LogicalVolume>();
  if (devices.size === 0) return found;
  const all = await list(signal);
  for (const [path, device] of devices) {
    const volume = all.find((each) => each.device !== undefined && deviceName(each.device) === device);
    const kind = volume === undefined ? undefined : kindOfVolume(volume);
    if (volume === undefined || kind === undefined) continue;
    const { group, name, freeBytes } = volume;
    const siblings = all.filter((each) => each.group === group).map((each) => each.name);
    found.set(path, { group, name, kind, freeBytes, siblings });
  }
  return found;
}

async function report(
  volumes: readonly SnapshotVolume[],
  signal?: AbortSignal,
): Promise<readonly VolumeReport[]> {
  const all = await list(signal);
  return volumes.map((volume) => {
    const found = all.find((each) => isSame(each, volume));
    if (found?.device === undefined) return { state: "missing" };
    const { usedPercent } = found;
    const used = volume.kind === "thin" || usedPercent === undefined ? {} : { usedPercent };
    return { state: isInvalid(found) ? "overflowed" : "whole", ...used };
  });
}

async function take({ origin, snapshot, reservedBytes }: PlannedVolume): Promise<void> {
  const { kind, group, name, tag } = snapshot;
  const classic = reservedBytes === undefined ? ["--extents", "100%ORIGIN"] : ["--size", `${reservedBytes}b`];
  await change("lvcreate", [
    ...["--yes", "--snapshot", "--permission", "r", "--addtag", tag, "--name", name],
    // Thin ones would else be left out when the group is activated, at the next start of the host.
    ...(kind === "thin" ? ["--setactivationskip", "n"] : classic),
    `${group}/${origin.name}`,
  ]);
}

async function remove(volume: SnapshotVolume): Promise<void> {
  if (!(await list()).some((each) => isSame(each, volume))) return;
  const { group, name, tag } = volume;
  // LVM looks at the tag once more, with the group locked.
  await change("lvremove", ["--yes", "--select", `lv_tags="${tag}"`, `${group}/${name}`]);
}

function isSame({ group, name, tags }: LvsVolume, volume: SnapshotVolume): boolean {
  return group === volume.group && name === volume.name && tags.includes(volume.tag);
}

async function list(signal?: AbortSignal): Promise<readonly LvsVolume[]> {
  signal?.throwIfAborted();
  return parseLvsReport(await run("lvs", LVS_ARGUMENTS, READ_WITHIN_MS, signal));
}

/**
 * If we die before it has locked the volume group, it ends, too; from then on it finishes, and whoever undoes it waits for that lock.
 * It is never killed in between: the origin could stay suspended, and the guest with it.
 */
async function change(tool: string, args: readonly string[]): Promise<void> {
  await run("setpriv", ["--pdeathsig", "TERM", "--", tool, ...args], CHANGE_WITHIN_MS);
}

async function run(
  program: string,
  args: readonly string[],
  timeoutMs: number,
  signal?: AbortSignal,
): Promise<string> {
  const result = await execa(program, args, {
    stdin: "ignore",
    env: { LC_ALL: "C" },
    reject: false,
    timeout: timeoutMs,
    killSignal: "SIGTERM",
    forceKillAfterDelay: false,
    cleanup: false,
    ...(signal === undefined ? {} : { cancelSignal: signal }),
  });
  if (!result.failed) return result.stdout;
  signal?.throwIfAborted();
  const tool = program === "setpriv" ? (args[3] ?? program) : program;
  if (result.code === "ENOENT" || result.exitCode === NOT_FOUND) throw toolMissing(tool);
  const output = cleanOutput(result.stderr, tool);
  const ending = result.timedOut
    ? `did not end within ${timeoutMs / 1000} s`
    : `ended with ${result.signal ?? `exit code ${result.exitCode ?? "unknown"}`}`;
  const words = output === "" ? "" : `: ${output}`;
  throw new FleeceError(codeOf(output), `${tool} ${ending}${words}`, { facts: { tool } });
}

/** Of `setpriv`, as of a shell. */
const NOT_FOUND = 127;

function codeOf(output: string): ErrorCode {
  if (/insufficient free space|free space in thin pool|No space left/i.test(output)) return "NO_SPACE";
  return /already exists/.test(output) ? "ALREADY_EXISTS" : "LVM_FAILED";
}

/** Undefined of what is no block device, or not there. */
async function deviceOf(path: string): Promise<string | undefined> {
  try {
    const facts = await stat(path, { bigint: true });
    if (!facts.isBlockDevice()) return undefined;
    // As Linux packs them: 12 bits of major in 8 to 19, minor around it.
    const major = (facts.rdev >> 8n) & 0xfffn;
    const minor = (facts.rdev & 0xffn) | ((facts.rdev >> 12n) & 0xfff00n);
    return deviceName({ major: Number(major), minor: Number(minor) });
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw fileError(error, "look at", path);
  }
}

function deviceName({ major, minor }: { readonly major: number; readonly minor: number }): string {
  return `${major}:${minor}`;
}
