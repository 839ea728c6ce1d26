import type { BackupWaits } from "./backup-limits.js";
import type { DiskFormat } from "./snapshot-plan.js";

export type BackupLevel = "full" | "incremental";
/**
 * How a disk was read. `changes`: what its bitmaps say; `compare`: all of it, and stored is what differs from the parent;
 * `whole`: all of it, and nothing older is needed for it. In a full, every disk is `whole`.
 */
export type DiskMode = "changes" | "compare" | "whole";
/** `clean`: the domain was inactive. `filesystem`: quiesced. `crash`: as after a power cut. */
export type Consistency = "clean" | "filesystem" | "crash";

/** What a repository knows of a finished backup: the content of its manifest.json. Times are RFC 3339 in UTC. */
export interface Manifest {
  /** 1: before a disk had a mode of its own; read as if it had. 3: an earlier backup has been merged into it. 4: has machine files. 5: is encrypted, in part or all. */
  readonly schemaVersion: 1 | 2 | 3 | 4 | 5;
  readonly id: string;
  readonly domain: string;
  readonly level: BackupLevel;
  /** Id of the backup that this one is based on; only incrementals have one. Same domain, same repository. */
  readonly parent?: string | undefined;
  /** Why this level was taken, in words. */
  readonly reason: string;
  /** The frozen moment. */
  readonly time: string;
  readonly startedAt: string;
  readonly finishedAt: string;
  readonly consistency: Consistency;
  /** How long the guest was stopped so that all disks show one moment, in milliseconds. */
  readonly heldMs: number;
  /** The most that was seen of what the guest's writes cost in scratch space meanwhile; older backups do not say. */
  readonly scratchPeakBytes?: number | undefined;
  /** How long it waited for limits and for the guest, if it did. */
  readonly waits?: BackupWaits | undefined;
  /** How long its file systems were frozen, in milliseconds; only if they were. */
  readonly frozenMs?: number | undefined;
  /** Why they were not, although that was asked for. */
  readonly quiesceFailure?: string | undefined;
  /** The checkpoint created at the frozen moment. */
  readonly checkpoint: string;
  /** The key of the request that it was taken for, if that had an id. */
  readonly request?: string | undefined;
  readonly disks: readonly ManifestDisk[];
  /** What belongs to the machine beside its disks, if the configuration named any; copied just after the frozen moment. */
  readonly machineFiles?: readonly ManifestFile[] | undefined;
}

export interface ManifestFile {
  /** The name of the configuration, and for a file of a directory its path below that. */
  readonly path: string;
  readonly sizeBytes: number;
  /** Of what is stored, in hex. */
  readonly sha256: string;
  /** As of a disk. */
  readonly keyId?: string | undefined;
}

export interface ManifestDisk {
  readonly target: string;
  /** Format of the disk in the domain; here it is always qcow2. */
  readonly sourceFormat: DiskFormat;
  /** The image in the domain, as its driver named it; unknown in manifests of schema 1. */
  readonly sourceFile?: string | undefined;
  readonly sizeBytes: number;
  readonly mode: DiskMode;
  /** Why this mode was taken, in words. */
  readonly reason: string;
  /** File names within the backup's directory. */
  readonly image: string;
  readonly digests: string;
  /** SHA-256 of the digest file, in hex. */
  readonly digestsSha256: string;
  /** The key that image and digests are encrypted with, by its id; left out: they are not. */
  readonly keyId?: string | undefined;
  readonly digestBlockBytes: number;
  /** Read from the domain. */
  readonly readBytes: number;
  /** Written as data. */
  readonly storedBytes: number;
  /** Recorded as zeroes, without storing them. */
  readonly zeroBytes: number;
  readonly durationMs: number;
}

/** A backup as a repository lists it. `damage` is set, and no more is known than its place, if its manifest is unusable. */
export type BackupEntry = IntactEntry | DamagedEntry;

export interface IntactEntry {
  readonly repository: string;
  readonly domain: string;
  readonly id: string;
  readonly manifest: Manifest;
  readonly damage?: undefined;
  /** Somebody has said that it must stay; neither `delete` nor `prune` takes it. */
  readonly protected?: boolean;
  /** It is a copy: the name of the repository that it was copied from. */
  readonly copiedFrom?: string;
}

export interface DamagedEntry {
  readonly repository: string;
  readonly domain: string;
  readonly id: string;
  readonly manifest?: undefined;
  readonly damage: string;
  readonly protected?: boolean;
  readonly copiedFrom?: string;
}

/** Of the key that it needs by itself: all that is encrypted is so with one. Undefined if nothing is. */
export function keyIdOf({ disks, machineFiles = [] }: Manifest): string | undefined {
  return [...disks, ...machineFiles].find(({ keyId }) => keyId !== undefined)?.keyId;
}

export function isIntact(entry: BackupEntry): entry is IntactEntry {
  return entry.damage === undefined;
}

/** The frozen moment, in Unix milliseconds. Nobody knows that of a damaged backup: it goes before all others. */
export function momentMs(entry: BackupEntry): number {
  return isIntact(entry) ? Date.parse(entry.manifest.time) : 0;
}

/** Oldest first, of the same moment by id. */
export function byTime(a: BackupEntry, b: BackupEntry): number {
  return momentMs(a) - momentMs(b) || (a.id < b.id ? -1 : 1);
}

export type Chain =
  | { readonly complete: true; readonly entries: readonly IntactEntry[] }
  | { readonly complete: false; readonly reason: string };

/** A backup with everything it needs for a restore, the full first. */
export function chainOf(entries: readonly BackupEntry[], id: string): Chain {
  const byId = new Map(entries.map((entry) => [entry.id, entry]));
  const chain: IntactEntry[] = [];
  for (let next: string | undefined = id; next !== undefined;) {
    const entry = byId.get(next);
    if (entry === undefined) return { complete: false, reason: `backup ${next} is missing` };
    if (!isIntact(entry)) return { complete: false, reason: `backup ${next} is damaged: ${entry.damage}` };
    if (chain.includes(entry)) return { complete: false, reason: `backup ${next} is its own ancestor` };
    chain.unshift(entry);
    next = entry.manifest.parent;
  }
  return { complete: true, entries: chain };
}

/** The part of a chain that one disk needs: from where it was stored whole. */
export function chainOfDisk(chain: readonly IntactEntry[], target: string): readonly IntactEntry[] {
  const isWhole = ({ manifest }: IntactEntry): boolean =>
    manifest.disks.some((disk) => disk.target === target && disk.mode === "whole");
  return chain.slice(Math.max(0, chain.findLastIndex(isWhole)));
}

export function childrenOf(entries: readonly BackupEntry[], id: string): readonly IntactEntry[] {
  return entries.filter(isIntact).filter((entry) => entry.manifest.parent === id);
}
