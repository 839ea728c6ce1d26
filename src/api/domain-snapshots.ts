import type {
  CloneOutcome,
  CreateDomainSnapshotRequest,
  DeleteOutcome,
  DomainSnapshot as ModelSnapshot,
  DomainSnapshotOptions,
  DomainSnapshotProgress as ModelProgress,
  DomainSnapshots,
  MergedLayer,
  RequestedDisk,
  RevertCost as ModelCost,
  SnapshotKind,
  SnapshotState,
  SnapshotVolume,
} from "../model/domain-snapshot.js";
import type { VolumeReport } from "../model/volumes.js";
import { parseBitmapName } from "../model/checkpoint.js";
import { parseSnapshotFile, type WishedDisk } from "../model/snapshot-file.js";
import { joinWishes } from "../model/snapshot-wishes.js";
import { requireDomain, type ServiceContext } from "../services/context.js";
import { reportVolumes } from "../services/domain-snapshots/check-volumes.js";
import { cloneDomainSnapshot } from "../services/domain-snapshots/clone.js";
import { createDomainSnapshot } from "../services/domain-snapshots/create.js";
import { deleteDomainSnapshot } from "../services/domain-snapshots/delete.js";
import { readSnapshot } from "../services/domain-snapshots/read-snapshot.js";
import { revertCost, revertDomainSnapshot } from "../services/domain-snapshots/revert.js";
import { inspectDomain } from "../services/domains.js";
import { FleeceError } from "../shared/errors.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import { CONSISTENCIES } from "./consistency.js";
import type {
  ClonedDomainSnapshot,
  DeletedDomainSnapshot,
  DomainSnapshot,
  DomainSnapshotProgress,
  ListDomainSnapshotsResponse,
  RevertCost,
  RevertedDomain,
  XmlDocument,
} from "./messages.js";
import { page } from "./page.js";
import { timestampFromMs } from "./timestamp.js";
import { parseDomainSnapshotXml, printDomainSnapshotXml } from "./xml/domain-snapshot-xml.js";

const KINDS = { external: "EXTERNAL", internal: "INTERNAL" } as const;
const KINDS_BY_NAME = { KIND_UNSPECIFIED: undefined, EXTERNAL: "external", INTERNAL: "internal" } as const;
const STATES = { running: "RUNNING", paused: "PAUSED", inactive: "INACTIVE" } as const;
const STATES_BY_NAME = { STATE_UNSPECIFIED: undefined, RUNNING: "running", PAUSED: "paused" } as const;
const VOLUME_KINDS = { thin: "THIN", classic: "CLASSIC" } as const;
const VOLUME_STATES = {
  whole: "WHOLE",
  overflowed: "OVERFLOWED",
  missing: "MISSING",
  unknown: "STATE_UNSPECIFIED",
} as const;
const LAYER_ENDS = {
  commit: "COMMIT",
  stream: "STREAM",
  removed: "REMOVED",
  internal: "INTERNAL",
  left: "LEFT",
} as const;
const PHASES = {
  preparing: "PREPARING",
  memory: "MEMORY",
  disks: "DISKS",
  checking: "CHECKING",
  loading: "LOADING",
  merging: "MERGING",
  finishing: "FINISHING",
} as const;

export async function createDomainSnapshotHandler(
  context: ServiceContext,
  request: CallRequest<"DomainSnapshots.Create">,
  options: CallOptions,
): Promise<DomainSnapshot> {
  const wanted = await wantedSnapshot(context, request);
  const created = await createDomainSnapshot(
    context,
    { ...wanted, request: options.requestKey },
    workOptions(options),
  );
  const reports = await reportVolumes(context, [created]);
  return domainSnapshotMessage(await context.domainSnapshots.read(request.domain), created, reports);
}

/** The fields of the request, and what its document says besides. */
async function wantedSnapshot(
  context: ServiceContext,
  request: CallRequest<"DomainSnapshots.Create">,
): Promise<CreateDomainSnapshotRequest> {
  const { domain, name, description, memoryPath, directory, disks, xml, file, settings, overlays } = request;
  const fields: CreateDomainSnapshotRequest = {
    domain,
    name,
    description,
    kind: KINDS_BY_NAME[request.kind],
    ...(request.live ? { live: true } : {}),
    ...(request.diskOnly ? { diskOnly: true } : {}),
    memoryPath,
    directory,
    ...(disks.length === 0 ? {} : { disks: requestedDisks(disks, overlays) }),
    ...(request.quiesce ? { quiesce: true } : {}),
    ...(request.lvm ? { lvm: true } : {}),
    lvmReservedBytes: request.lvmReservedBytes,
  };
  const stray = Object.keys(overlays).find((disk) => !disks.includes(disk));
  if (stray !== undefined) {
    throw new FleeceError(
      "INVALID_ARGUMENT",
      `Expected overlays of disks that are listed, got one of ${stray}`,
      {
        facts: { field: "overlays" },
      },
    );
  }
  if (xml !== undefined && (file !== undefined || settings.length > 0)) {
    throw new FleeceError("INVALID_ARGUMENT", "Expected XML or a file with settings, got both");
  }
  if (xml === undefined && file === undefined && settings.length === 0) return fields;
  if (xml === undefined) return joinWishes(fields, parseSnapshotFile(file ?? "", "file", settings), []);
  const { memoryKind: kind, ...document } = parseDomainSnapshotXml(xml);
  const wishes = { ...document, ...(kind === undefined ? {} : { kind }) };
  return joinWishes(fields, wishes, await otherTargets(context, domain, document.disks));
}

function requestedDisks(
  disks: readonly string[],
  overlays: Readonly<Record<string, string>>,
): readonly RequestedDisk[] {
  // A disk may be called `constructor`.
  const given = new Map(Object.entries(overlays));
  return disks.map((disk) => ({ disk, overlay: given.get(disk) }));
}

/** All that the document does not name; it need not name any. */
async function otherTargets(
  context: ServiceContext,
  domain: string,
  disks: readonly WishedDisk[] = [],
): Promise<readonly string[]> {
  if (disks.length === 0) return [];
  const state = await inspectDomain(context, domain);
  return state.disks
    .filter(({ file, activeFile }) => disks.every(({ disk }) => disk !== file && disk !== activeFile))
    .map(({ target }) => target);
}

export async function listDomainSnapshotsHandler(
  context: ServiceContext,
  { domain, ...paging }: CallRequest<"DomainSnapshots.List">,
): Promise<ListDomainSnapshotsResponse> {
  const all = await context.domainSnapshots.read(requireDomain(context, domain));
  const scope = ["domain-snapshots", domain];
  const { items, nextPageToken } = page(all.snapshots, paging, scope, ({ timeMs, name }) => [timeMs, name]);
  const reports = await reportVolumes(context, items);
  return { snapshots: items.map((snapshot) => domainSnapshotMessage(all, snapshot, reports)), nextPageToken };
}

export async function getDomainSnapshotHandler(
  context: ServiceContext,
  { domain, name }: CallRequest<"DomainSnapshots.Get">,
): Promise<DomainSnapshot> {
  const { all, snapshot } = await readSnapshot(context, requireDomain(context, domain), name);
  return domainSnapshotMessage(all, snapshot, await reportVolumes(context, [snapshot]));
}

/** Answers with `<domainsnapshot>`; the file of a disk is that with the content of the snapshot. */
export async function getDomainSnapshotXmlHandler(
  context: ServiceContext,
  { domain, name }: CallRequest<"DomainSnapshots.GetXml">,
): Promise<XmlDocument> {
  const { snapshot } = await readSnapshot(context, requireDomain(context, domain), name);
  const { description, timeMs, parent, state, kind, memory, disks } = snapshot;
  const xml = printDomainSnapshotXml({
    name,
    description,
    ...(parent === undefined ? {} : { parent }),
    state,
    creationTimeSeconds: Math.floor(timeMs / 1000),
    memory: memory !== undefined,
    ...(memory === undefined ? {} : { memoryKind: memory.kind }),
    ...(memory?.kind === "external" ? { memoryPath: memory.file } : {}),
    disks: disks.map(({ target }) => ({ disk: target, kind })),
  });
  return { xml };
}

export async function getRevertCostHandler(
  context: ServiceContext,
  { domain, name }: CallRequest<"DomainSnapshots.GetRevertCost">,
): Promise<RevertCost> {
  return costMessage(await revertCost(context, { domain, name }));
}

export async function revertDomainSnapshotHandler(
  context: ServiceContext,
  { domain, name, to, force, quitFirst }: CallRequest<"DomainSnapshots.Revert">,
  options: CallOptions,
): Promise<RevertedDomain> {
  const wishes = { to: STATES_BY_NAME[to], force, quitFirst };
  const request = { domain, name, ...wishes, request: options.requestKey };
  const outcome = await revertDomainSnapshot(context, request, workOptions(options));
  const reports = await reportVolumes(context, [outcome.snapshot]);
  return {
    snapshot: domainSnapshotMessage(await context.domainSnapshots.read(domain), outcome.snapshot, reports),
    state: STATES[outcome.state],
    cost: costMessage(outcome),
    downtimeMs: Math.round(outcome.downtimeMs),
    pid: outcome.pid,
  };
}

export async function deleteDomainSnapshotHandler(
  context: ServiceContext,
  { domain, name, metadataOnly }: CallRequest<"DomainSnapshots.Delete">,
  options: CallOptions,
): Promise<DeletedDomainSnapshot> {
  const { beforeEffect } = options;
  const message = ({ merged, reparented }: DeleteOutcome): DeletedDomainSnapshot => ({
    ...{ domain, name, reparented },
    layers: merged.map(layerMessage),
  });
  const outcome = await deleteDomainSnapshot(
    context,
    { domain, name, metadataOnly },
    { ...workOptions(options), onPlanned: async (planned) => beforeEffect?.(message(planned)) },
  );
  return message(outcome);
}

export async function cloneDomainSnapshotHandler(
  context: ServiceContext,
  { domain, name, directory }: CallRequest<"DomainSnapshots.Clone">,
  options: CallOptions,
): Promise<ClonedDomainSnapshot> {
  const { beforeEffect, promised } = options;
  if (promised?.proof !== undefined && (await context.outputs.identityOf(directory)) === promised.proof) {
    return promised.answer as ClonedDomainSnapshot;
  }
  const message = ({ disks, memory, arguments: list = [] }: CloneOutcome): ClonedDomainSnapshot => ({
    ...{ domain, name, directory, disks },
    memoryFile: memory,
    arguments: list,
  });
  const outcome = await cloneDomainSnapshot(
    context,
    { domain, name, directory },
    {
      ...workOptions(options),
      onComplete: async (cloned, identity) => beforeEffect?.(message(cloned), identity),
    },
  );
  return message(outcome);
}

/** Fails with CONFIG_INVALID and the place in the file, which the agent does not know. */
export function checkSnapshotFile(text: string, file: string, settings: readonly string[]): void {
  parseSnapshotFile(text, file, settings);
}

/** What a file in the form of xl calls a snapshot. Fails with CONFIG_INVALID, also if it has no name. */
export function snapshotNameIn(text: string, file: string): string {
  const { name } = parseSnapshotFile(text, file);
  if (name !== undefined) return name;
  throw new FleeceError("CONFIG_INVALID", `${file}: Expected the name of a snapshot, got none`);
}

/** `reports` on the snapshots by LVM, by their devices. */
export function domainSnapshotMessage(
  all: DomainSnapshots,
  snapshot: ModelSnapshot,
  reports: ReadonlyMap<string, VolumeReport> = new Map(),
): DomainSnapshot {
  const { name, description, timeMs, parent, state, kind, live, memory, consistency, machine } = snapshot;
  return {
    domain: all.domain,
    name,
    description,
    time: timestampFromMs(timeMs),
    parent,
    current: all.current === name,
    state: stateName(state),
    kind: kindName(kind),
    live,
    memory:
      memory === undefined
        ? null
        : memory.kind === "external"
          ? { file: memory.file, sizeBytes: memory.sizeBytes, target: undefined }
          : { file: undefined, sizeBytes: memory.sizeBytes, target: memory.target },
    consistency: consistency === undefined ? "CONSISTENCY_UNSPECIFIED" : CONSISTENCIES[consistency],
    pausedMs: Math.round(snapshot.pausedMs),
    disks: snapshot.disks.map(({ target, file, format, sizeBytes, bitmaps, volume }) => ({
      target,
      file,
      format,
      sizeBytes,
      checkpoints: bitmaps.flatMap((bitmap) => parseBitmapName(bitmap)?.name ?? []),
      volume: volume === undefined ? null : volumeMessage(volume, reports.get(file)),
    })),
    machineType: machine?.type,
    clones: snapshot.clones.map((clone) => ({
      directory: clone.directory,
      time: timestampFromMs(clone.timeMs),
    })),
    keptByRevert: snapshot.keptByRevert === true,
    leftOutDisks: snapshot.leftOut ?? [],
  };
}

function volumeMessage(
  { kind, group, name }: SnapshotVolume,
  { state, usedPercent }: VolumeReport = { state: "unknown" },
): DomainSnapshot["disks"][number]["volume"] {
  return { kind: VOLUME_KINDS[kind], group, name, state: VOLUME_STATES[state], usedPercent };
}

function stateName(state: SnapshotState): DomainSnapshot["state"] {
  return STATES[state];
}

function kindName(kind: SnapshotKind): DomainSnapshot["kind"] {
  return KINDS[kind];
}

function costMessage({ keptAs, endedCheckpoints, risks }: ModelCost): RevertCost {
  return { keptAs, endedCheckpoints, risks };
}

function layerMessage({ target, how, from, into }: MergedLayer): DeletedDomainSnapshot["layers"][number] {
  return { target, how: LAYER_ENDS[how], from, into };
}

function workOptions({ signal, onProgress }: CallOptions): DomainSnapshotOptions {
  return {
    signal,
    ...(onProgress === undefined ? {} : { onProgress: (progress) => onProgress(progressMessage(progress)) }),
  };
}

function progressMessage({ phase, target, doneBytes, totalBytes }: ModelProgress): DomainSnapshotProgress {
  return { phase: PHASES[phase], target, doneBytes, totalBytes };
}
