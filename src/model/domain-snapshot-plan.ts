import { posix } from "node:path";
import type { ErrorCode } from "../shared/errors.js";
import { FleeceError } from "../shared/errors.js";
import { formatBytes, MIB } from "../shared/units.js";
import type {
  CreateDomainSnapshotRequest,
  DomainSnapshot,
  DomainSnapshots,
  RequestedDisk,
  SnapshotKind,
  SnapshotMachine,
  SnapshotState,
} from "./domain-snapshot.js";
import { findSnapshot } from "./domain-snapshot.js";
import { checkName } from "./names.js";
import { checkFilePath } from "./paths.js";
import type { QuiescePlan } from "./quiesce.js";
import { DISK_FORMATS, type DiskFormat, formatOfDriver } from "./snapshot-plan.js";
import { checkVolumeSpace, type LogicalVolume, planVolume, type PlannedVolume } from "./volumes.js";

/** What the creation of an external domain snapshot will do, decided before anything changes; and why it may not be. */

/** The domain as it is seen. */
export interface DomainFacts {
  readonly state: SnapshotState;
  /** QEMU's word for it; `inactive` without a QEMU. */
  readonly runState: string;
  /** The status of a migration that is under way. */
  readonly migration?: string;
  /** QEMU's words for what keeps memory from being saved. */
  readonly memoryBlockers: readonly string[];
  /** In words, each with its id. */
  readonly jobs: readonly string[];
  /** Ids of NBD exports that other programs made. */
  readonly foreignExports: readonly string[];
  readonly disks: readonly DiskFacts[];
  /** Of a QEMU that was asked for it. */
  readonly machine?: SnapshotMachine;
}

export interface DiskFacts {
  readonly target: string;
  /** Of the top layer, absolute. */
  readonly file: string;
  /** Drivers of all layers, the top one first. */
  readonly formats: readonly string[];
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly removable: boolean;
  /** A filter between the device and the disk. */
  readonly filter?: string;
  /** Bitmaps of checkpoints in the top layer, oldest first. */
  readonly bitmaps: readonly LayerBitmap[];
  /** Names of snapshots inside the image. */
  readonly internalSnapshots: readonly string[];
}

export interface LayerBitmap {
  readonly bitmap: string;
  readonly granularityBytes: number;
  readonly recording: boolean;
  readonly inconsistent: boolean;
}

/** Plain JSON: the journal keeps it. */
export interface CreationPlan {
  /** Eight characters: part of node names and of the first names of files. */
  readonly id: string;
  readonly domain: string;
  readonly name: string;
  readonly description: string;
  readonly parent?: string;
  readonly state: SnapshotState;
  readonly live: boolean;
  readonly disks: readonly PlannedLayer[];
  /** Disks of which LVM makes a snapshot: they get no overlay. */
  readonly volumes?: readonly PlannedVolume[];
  readonly memory?: NewFile;
  /** Set with `memory`. */
  readonly machine?: SnapshotMachine;
  /** To be made, and removed with the snapshot. */
  readonly directory?: string;
  readonly quiesce?: QuiescePlan;
  /** Targets of disks that the snapshot does not hold. */
  readonly leftOut: readonly string[];
  /** The key of the request. */
  readonly request?: string;
}

/**
 * A file with a name that users chose. It gets a name of ours first: by that, whoever undoes the creation can tell it from a
 * file that somebody else has put there.
 */
export interface NewFile {
  readonly path: string;
  readonly firstName: string;
}

export interface PlannedLayer {
  readonly target: string;
  /** The disk's present top layer: the snapshot's file from the moment on. */
  readonly file: string;
  readonly format: DiskFormat;
  readonly sizeBytes: number;
  readonly home: string;
  readonly overlay: NewFile;
  /** Of the overlay in QEMU. */
  readonly node: string;
  /** All that the layer has, the recording one last. */
  readonly bitmaps: readonly string[];
  /** Those that go on recording in the overlay. */
  readonly carried: readonly LayerBitmap[];
}

export interface PlanParts {
  readonly id: string;
  readonly nowMs: number;
  readonly facts: DomainFacts;
  readonly all: DomainSnapshots;
  /** Where files go unless the request says otherwise. */
  readonly directory: string;
  /** Whether the request's `memoryPath` is a directory. */
  readonly memoryPathIsDirectory: boolean;
  /** What holds the domain's disks open, in words: block snapshots of ours, for example. */
  readonly holders: readonly string[];
  readonly quiesce?: QuiescePlan | undefined;
  /** By the disk's file: asked for if the request wants snapshots by LVM. */
  readonly volumes?: ReadonlyMap<string, LogicalVolume>;
}

/** Throws a FleeceError with the first reason against it. */
export function planCreation(request: CreateDomainSnapshotRequest, parts: PlanParts): CreationPlan {
  const { facts, all, id } = parts;
  const name = chooseName(request.name, parts);
  checkRunState(facts, request.domain);
  checkFree(parts, request.domain);
  checkOptions(request, facts);
  checkKind(request, all);
  const withMemory = request.diskOnly !== true && facts.state !== "inactive";
  const chosen = chooseDisks(request, facts, all);
  if (withMemory) checkMemory(chosen, facts, request);
  const directory = request.directory ?? parts.directory;
  const file = (path: string): NewFile => ({
    path,
    firstName: posix.join(posix.dirname(path), `.fleece-${id}-${posix.basename(path)}`),
  });
  const volumes = planVolumes(request, name, chosen, parts);
  const byLvm = new Set(volumes.map(({ target }) => target));
  const layered = chosen.filter(({ disk }) => !byLvm.has(disk.target));
  for (const { disk } of chosen) checkDisk(disk, all);
  const disks = layered.map(({ disk, requested }, index) => {
    const overlay = requested?.overlay ?? posix.join(directory, `${disk.target}-${name}.qcow2`);
    return planLayer(disk, file(checkFilePath("an overlay", overlay)), `domsnap-${id}-${index}`, all);
  });
  const memory = withMemory ? file(memoryFile(request, parts, directory, name)) : undefined;
  checkDistinct([
    ...disks.map(({ overlay }) => overlay.path),
    ...(memory === undefined ? [] : [memory.path]),
  ]);
  const targets = new Set([...byLvm, ...disks.map(({ target }) => target)]);
  return {
    id,
    domain: request.domain,
    name,
    description: request.description ?? "",
    ...(all.current === undefined ? {} : { parent: all.current }),
    state: facts.state,
    live: withMemory && facts.state === "running" && request.live === true,
    disks,
    ...(volumes.length === 0 ? {} : { volumes }),
    ...(memory === undefined ? {} : { memory }),
    ...(memory === undefined || facts.machine === undefined ? {} : { machine: facts.machine }),
    ...(request.directory === undefined
      ? {}
      : { directory: checkFilePath("a directory", request.directory) }),
    ...(parts.quiesce === undefined ? {} : { quiesce: parts.quiesce }),
    leftOut: facts.disks.map(({ target }) => target).filter((target) => !targets.has(target)),
    ...(request.request === undefined ? {} : { request: request.request }),
  };
}

/** Free space of the file systems that the plan writes to. */
export interface Place {
  /** Tells file systems apart. */
  readonly device: string;
  readonly freeBytes: number;
}

/** Beyond the guest's RAM: the state of its devices, and pages that a running guest changes while they are saved. */
const MEMORY_SLACK_BYTES = 32 * MIB;
/** An overlay with its tables and bitmaps, and something of what the guest will write. */
const OVERLAY_BYTES = 4 * MIB;

/** Throws NO_SPACE. `placeOf` knows the directory of each new file. */
export function checkSpace(plan: CreationPlan, placeOf: (directory: string) => Place | undefined): void {
  const memoryBytes = (plan.machine?.memoryBytes ?? 0) + MEMORY_SLACK_BYTES;
  const files = [
    ...plan.disks.map(({ overlay }) => ({ what: "overlays", ...overlay, bytes: OVERLAY_BYTES })),
    ...(plan.memory === undefined ? [] : [{ what: "the memory", ...plan.memory, bytes: memoryBytes }]),
  ];
  const needed = new Map<string, number>();
  for (const { what, path, bytes } of files) {
    const directory = posix.dirname(path);
    const place = placeOf(directory);
    if (place === undefined) continue;
    const sum = (needed.get(place.device) ?? 0) + bytes;
    needed.set(place.device, sum);
    if (sum <= place.freeBytes) continue;
    throw new FleeceError(
      "NO_SPACE",
      `Expected ${formatBytes(sum)} free for the domain snapshot (up to ${what}) in ${directory}, got ${formatBytes(place.freeBytes)}`,
      { facts: { path: directory, neededBytes: sum, freeBytes: place.freeBytes } },
    );
  }
}

/**
 * Throws NO_SPACE. An internal snapshot has the memory in the first disk's image. What QEMU has written of it stays there, unused, if
 * there is no room for the rest, and then the guest lacks that room.
 */
export function checkMemoryRoom(
  { memoryBytes }: Pick<SnapshotMachine, "memoryBytes">,
  holder: { readonly file: string; readonly freeBytes?: number } | undefined,
): void {
  const neededBytes = memoryBytes + MEMORY_SLACK_BYTES;
  if (holder?.freeBytes === undefined || holder.freeBytes >= neededBytes) return;
  const { file, freeBytes } = holder;
  throw new FleeceError(
    "NO_SPACE",
    `Expected ${formatBytes(neededBytes)} free for the memory in ${file}, got ${formatBytes(freeBytes)}`,
    { facts: { path: file, neededBytes, freeBytes } },
  );
}

/** The document with the new snapshot, which the domain descends from then. */
export function addSnapshot(
  all: DomainSnapshots,
  plan: CreationPlan,
  snapshot: DomainSnapshot,
): DomainSnapshots {
  const layers = new Map(all.layers.map((layer) => [layer.target, layer]));
  for (const { target, home, overlay } of plan.disks) {
    layers.set(target, { ...layers.get(target), target, home, active: overlay.path, format: "qcow2" });
  }
  // Where the guest goes on: a revert leaves it for an overlay.
  for (const { target, origin } of plan.volumes ?? []) {
    if (layers.has(target)) continue;
    layers.set(target, { target, home: origin.file, active: origin.file, format: "raw" });
  }
  return {
    ...all,
    current: snapshot.name,
    layers: [...layers.values()],
    snapshots: [...all.snapshots, snapshot],
  };
}

/** All new files. */
export function filesOf({ disks, memory }: CreationPlan): readonly NewFile[] {
  return [...disks.map(({ overlay }) => overlay), ...(memory === undefined ? [] : [memory])];
}

function chooseName(wanted: string | undefined, { all, nowMs }: PlanParts): string {
  if (wanted !== undefined) {
    const name = checkName("domain snapshot", wanted);
    if (findSnapshot(all, name) === undefined) return name;
    throw refused("ALREADY_EXISTS", `Domain ${all.domain} already has a domain snapshot ${name}`, {
      domain: all.domain,
      snapshot: name,
    });
  }
  let seconds = Math.floor(nowMs / 1000);
  while (findSnapshot(all, String(seconds)) !== undefined) seconds++;
  return String(seconds);
}

/** States of QEMU that last for as long as something is under way in it. */
const MOVING: ReadonlySet<string> = new Set(["inmigrate", "finish-migrate", "save-vm", "restore-vm"]);
const SNAPSHOT_STATES: ReadonlySet<string> = new Set(["running", "paused", "inactive"]);

function checkRunState({ runState, migration }: DomainFacts, domain: string): void {
  if (migration !== undefined || MOVING.has(runState)) {
    const what = migration === undefined ? `its state is ${runState}` : `it is being migrated (${migration})`;
    throw refused("DOMAIN_BUSY", `Domain ${domain} is busy: ${what}`, { domain, runState });
  }
  if (SNAPSHOT_STATES.has(runState)) return;
  throw refused(
    "UNSUPPORTED",
    `Expected domain ${domain} to be running, paused or inactive, got ${runState}`,
    { domain, runState },
  );
}

function checkFree({ facts, holders }: PlanParts, domain: string): void {
  const exports = facts.foreignExports.map((id) => `NBD export ${id} of another program`);
  refuseHolders(domain, [...holders, ...facts.jobs, ...exports]);
}

/** Fails with DOMAIN_BUSY if something holds the domain's disks; it is told in words. */
export function refuseHolders(domain: string, [holder]: readonly string[]): void {
  if (holder === undefined) return;
  throw refused("DOMAIN_BUSY", `Domain ${domain} is busy: ${holder}`, { domain, holder });
}

function checkOptions(request: CreateDomainSnapshotRequest, facts: DomainFacts): void {
  const { diskOnly = false, memoryPath, live = false, quiesce = false } = request;
  const isInactive = facts.state === "inactive";
  const withMemory = !diskOnly && !isInactive;
  const why = diskOnly ? "a disk-only snapshot" : "an inactive domain";
  if (memoryPath !== undefined && !withMemory) {
    throw refused("INVALID_ARGUMENT", `Expected no path for the memory of ${why}, got ${memoryPath}`);
  }
  if (live && !withMemory) {
    throw refused("INVALID_ARGUMENT", `Expected a snapshot with memory for live, got ${why}`);
  }
  if (quiesce && withMemory) {
    const reason = "the guest would come back frozen";
    throw refused(
      "INVALID_ARGUMENT",
      `Expected a disk-only snapshot for quiesce, got one with memory: ${reason}`,
    );
  }
  if (quiesce && isInactive) {
    throw refused("INVALID_ARGUMENT", "Expected a domain that runs for quiesce, got an inactive one");
  }
}

/** What is asked for; both if disks differ. */
export function kindsOf({ kind, disks }: CreateDomainSnapshotRequest): ReadonlySet<SnapshotKind> {
  const otherwise = kind ?? "external";
  return new Set(disks?.map((disk) => disk.kind ?? otherwise) ?? [otherwise]);
}

/** Neither in a set nor in a chain: an overlay hides what is inside the image below it. */
function checkKind(request: CreateDomainSnapshotRequest, all: DomainSnapshots): void {
  const kinds = kindsOf(request);
  if (kinds.has("internal") && kinds.has("external")) {
    throw refused(
      "UNSUPPORTED",
      "Expected a snapshot that is either internal or external, got both for its disks",
    );
  }
  if (kinds.has("internal")) {
    throw refused("UNSUPPORTED", "Expected an external snapshot, got an internal one");
  }
  const other = all.snapshots.find(({ kind }) => !kinds.has(kind));
  if (other === undefined) return;
  throw refused(
    "UNSUPPORTED",
    `Expected an ${other.kind} snapshot, as ${other.name} of domain ${all.domain} is one: external and internal ones cannot be mixed`,
    { domain: all.domain, snapshot: other.name },
  );
}

interface ChosenDisk {
  readonly disk: DiskFacts;
  readonly requested?: RequestedDisk;
}

function chooseDisks(
  request: CreateDomainSnapshotRequest,
  facts: DomainFacts,
  { layers }: DomainSnapshots,
): readonly ChosenDisk[] {
  const { domain } = request;
  const chosen =
    request.disks === undefined
      ? facts.disks.filter(isOffered).map((disk): ChosenDisk => ({ disk }))
      : request.disks.map((requested) => {
          const target = layers.find(({ home }) => home === requested.disk)?.target ?? requested.disk;
          return { disk: findDisk(target, facts, domain), requested };
        });
  for (const { disk } of chosen) {
    if (isOffered(disk)) continue;
    const what = disk.removable ? "removable" : "read-only";
    throw refused(
      "INVALID_ARGUMENT",
      `Expected a writable disk, but ${disk.target} of domain ${domain} is ${what}`,
      {
        domain,
        target: disk.target,
      },
    );
  }
  const twice = chosen.find(({ disk }, index) => chosen.findIndex((other) => other.disk === disk) !== index);
  if (twice !== undefined) {
    throw refused("INVALID_ARGUMENT", `Expected different disks, got ${twice.disk.target} twice`);
  }
  if (chosen.length > 0) return chosen;
  throw refused("UNSUPPORTED", `Domain ${domain} has no writable disk that a snapshot could hold`, {
    domain,
  });
}

function isOffered({ readOnly, removable }: DiskFacts): boolean {
  return !readOnly && !removable;
}

function findDisk(wanted: string, { disks }: DomainFacts, domain: string): DiskFacts {
  const found = disks.find(({ target, file }) => target === wanted || file === wanted);
  if (found !== undefined) return found;
  const known = disks.map(({ target }) => target).join(", ") || "none";
  throw refused("DISK_NOT_FOUND", `Domain ${domain} has no disk ${wanted}; it has ${known}`, {
    domain,
    target: wanted,
  });
}

/** Memory and a disk of another moment do not go together, so every disk that the guest can change must be held. */
function checkMemory(
  chosen: readonly ChosenDisk[],
  facts: DomainFacts,
  { domain, live = false }: CreateDomainSnapshotRequest,
): void {
  const held = new Set(chosen.map(({ disk }) => disk));
  const missing = facts.disks.filter((disk) => isOffered(disk) && !held.has(disk));
  if (missing.length > 0) {
    const names = missing.map(({ target }) => target).join(", ");
    throw refused(
      "INVALID_ARGUMENT",
      `Expected all writable disks of domain ${domain} in a snapshot with memory, ${names} is left out; add it, or take the snapshot disk-only`,
      { domain, targets: names },
    );
  }
  const foreign = facts.disks.find(({ formats }) => formats.some((each) => FOREIGN_FORMATS.has(each)));
  if (live && foreign !== undefined) {
    throw refused(
      "UNSUPPORTED",
      `The memory of domain ${domain} cannot be saved live: disk ${foreign.target} is, or is based on, ${foreign.formats.at(-1) ?? "another format"}, which QEMU must not have open then; it is possible without live`,
      { domain },
    );
  }
  const [blocker] = facts.memoryBlockers;
  if (blocker === undefined) return;
  throw refused(
    "UNSUPPORTED",
    `The memory of domain ${domain} cannot be saved: ${blocker}; a disk-only snapshot is possible`,
    { domain },
  );
}

/** QEMU saves no memory as long as one is open. */
const FOREIGN_FORMATS: ReadonlySet<string> = new Set(["vpc", "vhdx", "vmdk", "vdi"]);

function checkDisk(disk: DiskFacts, all: DomainSnapshots): void {
  const { target, file, filter } = disk;
  if (filter !== undefined) {
    throw refused(
      "FOREIGN_FILTER",
      `Another tool's filter ${filter} is on disk ${target} of domain ${all.domain}`,
      {
        target,
        filter,
      },
    );
  }
  const [internal] = disk.internalSnapshots;
  if (internal !== undefined) {
    throw refused(
      "UNSUPPORTED",
      `The image of disk ${target} has an internal snapshot ${internal}, which an overlay would hide: external and internal ones cannot be mixed`,
      { target },
    );
  }
  const layer = all.layers.find((each) => each.target === target);
  if (layer === undefined || layer.active === file) return;
  throw refused(
    "DAMAGED",
    `Disk ${target} of domain ${all.domain} is in ${file}, but after its domain snapshots it should be in ${layer.active}: it was started with another file, and may have changed what a snapshot holds`,
    { target, path: file },
  );
}

function planLayer(disk: DiskFacts, overlay: NewFile, node: string, all: DomainSnapshots): PlannedLayer {
  const { target, file, sizeBytes, bitmaps } = disk;
  const driver = disk.formats[0] ?? "unknown";
  const format = formatOfDriver(driver);
  if (format === undefined) {
    const known = DISK_FORMATS.join(", ");
    throw refused("UNSUPPORTED", `Expected disk ${target} to be one of ${known}, got ${driver}`, { target });
  }
  const sound = bitmaps.filter(({ inconsistent }) => !inconsistent);
  const carried = sound.filter(({ recording }) => recording);
  const stopped = sound.filter(({ recording }) => !recording);
  return {
    target,
    file: checkFilePath(`disk ${target}`, file),
    format,
    sizeBytes,
    home: all.layers.find((layer) => layer.target === target)?.home ?? file,
    overlay,
    node,
    bitmaps: [...stopped, ...carried].map(({ bitmap }) => bitmap),
    carried,
  };
}

/** Those disks that are logical volumes, as they are: LVM knows nothing of images and what these are based on. */
function planVolumes(
  { domain, lvm, lvmReservedBytes: reservedBytes }: CreateDomainSnapshotRequest,
  snapshot: string,
  chosen: readonly ChosenDisk[],
  { id, volumes: known = new Map<string, LogicalVolume>() }: PlanParts,
): readonly PlannedVolume[] {
  if (lvm !== true) {
    if (reservedBytes === undefined) return [];
    throw refused("INVALID_ARGUMENT", "Expected a snapshot by LVM for the size of one, got none");
  }
  const planned = chosen.flatMap(({ disk: { target, file, formats, sizeBytes }, requested }) => {
    const volume = known.get(file);
    const isPlain = formats.length === 1 && formatOfDriver(formats[0] ?? "") === "raw";
    if (volume === undefined || !isPlain || requested?.overlay !== undefined) return [];
    return [planVolume(volume, { id, snapshot, target, file, sizeBytes, reservedBytes })];
  });
  if (planned.length === 0) {
    const found = chosen.map(({ disk }) => `${disk.target} in ${disk.file}`).join(", ");
    throw refused(
      "UNSUPPORTED",
      `Expected a disk of domain ${domain} that is a raw logical volume, for a snapshot by LVM, got ${found}`,
      { domain },
    );
  }
  checkVolumeSpace(planned, known.values());
  return planned;
}

function memoryFile(
  { memoryPath }: CreateDomainSnapshotRequest,
  { memoryPathIsDirectory }: PlanParts,
  directory: string,
  name: string,
): string {
  if (memoryPath === undefined) return posix.join(directory, `${name}.save`);
  const path = checkFilePath("the memory", memoryPath);
  return memoryPathIsDirectory ? posix.join(path, `${name}.save`) : path;
}

function checkDistinct(paths: readonly string[]): void {
  const twice = paths.find((path, index) => paths.indexOf(path) !== index);
  if (twice === undefined) return;
  throw refused("INVALID_ARGUMENT", `Expected different files for the snapshot, got ${twice} twice`);
}

function refused(
  code: ErrorCode,
  message: string,
  facts: Readonly<Record<string, string>> = {},
): FleeceError {
  return new FleeceError(code, message, { facts });
}
