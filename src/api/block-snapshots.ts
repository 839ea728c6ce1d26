import type { ServiceContext } from "../services/context.js";
import type { SnapshotOptions } from "../services/block-snapshots.js";
import { createBlockSnapshot, deleteBlockSnapshot, renewBlockSnapshot } from "../services/block-snapshots.js";
import type { BlockSnapshot as ServiceSnapshot } from "../services/open-snapshots.js";
import { ownerOf } from "../model/access.js";
import { consistencyOf, quiesceFacts } from "../model/quiesce.js";
import { askWhetherBroken, getBlockSnapshot, listBlockSnapshots } from "../services/open-snapshots.js";
import { scratchUse } from "../services/scratch-watch.js";
import { blockExportMessage } from "./block-exports.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import { CONSISTENCIES } from "./consistency.js";
import { formatName } from "./domains.js";
import type {
  BlockSnapshot,
  BlockSnapshotDisk,
  ListBlockSnapshotsResponse,
  XmlDocument,
} from "./messages.js";
import { page } from "./page.js";
import { FleeceError } from "../shared/errors.js";
import { timestampFromMs } from "./timestamp.js";
import { parseBlockSnapshotXml, printBlockSnapshotXml } from "./xml/block-snapshot-xml.js";

/** As block_snapshot.proto says. */
const DEFAULT_LEASE_MS = 30 * 60_000;

export async function createBlockSnapshotHandler(
  context: ServiceContext,
  request: CallRequest<"BlockSnapshots.Create">,
  { signal, requestKey }: CallOptions,
): Promise<BlockSnapshot> {
  const { domain, checkpoint, leaseMs, quiesce } = request;
  const created = await createBlockSnapshot(context, {
    domain,
    leaseMs: leaseMs ?? DEFAULT_LEASE_MS,
    ...wantedDisks(request),
    ...(checkpoint === undefined || checkpoint === null
      ? {}
      : { checkpoint: checkpoint.name === undefined ? {} : { name: checkpoint.name } }),
    ...(quiesce === undefined ? {} : { quiesce }),
    ...(requestKey === undefined ? {} : { request: requestKey }),
    ...(signal === undefined ? {} : { signal }),
  });
  return withUse(context, created);
}

function wantedDisks({
  name,
  disks,
  xml,
}: CallRequest<"BlockSnapshots.Create">): Pick<SnapshotOptions, "name" | "disks" | "scratchFiles"> {
  if (xml !== undefined && (name !== undefined || disks.length > 0)) {
    throw new FleeceError(
      "INVALID_ARGUMENT",
      "Expected either XML or a name and disks, got both: the XML says which disks",
    );
  }
  const document =
    xml === undefined ? { name, disks: disks.map((disk) => ({ name: disk })) } : parseBlockSnapshotXml(xml);
  const files = document.disks.flatMap((disk) => ("file" in disk ? [[disk.name, disk.file] as const] : []));
  return {
    ...(document.name === undefined ? {} : { name: document.name }),
    ...(document.disks.length === 0 ? {} : { disks: document.disks.map((disk) => disk.name) }),
    scratchFiles: new Map(files),
  };
}

export async function listBlockSnapshotsHandler(
  context: ServiceContext,
  { domain, ...paging }: CallRequest<"BlockSnapshots.List">,
): Promise<ListBlockSnapshotsResponse> {
  const open = await listBlockSnapshots(context, domain);
  const scope = ["snapshots", domain];
  const { items, nextPageToken } = page(open, paging, scope, ({ timeMs, name }) => [timeMs, name]);
  const asked = await askWhetherBroken(context, domain, items);
  const snapshots = await Promise.all(asked.map((snapshot) => withUse(context, snapshot)));
  return { snapshots, nextPageToken };
}

export async function getBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name }: CallRequest<"BlockSnapshots.Get">,
): Promise<BlockSnapshot> {
  const snapshot = await getBlockSnapshot(context, domain, name);
  const [asked = snapshot] = await askWhetherBroken(context, domain, [snapshot]);
  return withUse(context, asked);
}

/** Answers with `<domainblocksnapshot>`, in the form of the RFC (`<fleece>`) if that is asked for. */
export async function getBlockSnapshotXmlHandler(
  context: ServiceContext,
  { domain, name, rfcForm }: CallRequest<"BlockSnapshots.GetXml">,
): Promise<XmlDocument> {
  const { mode, plan } = await getBlockSnapshot(context, domain, name);
  const disks = plan.disks.map(({ target, scratchPath, scratchFile }) =>
    mode === "inactive" ? { name: target } : { name: target, file: scratchFile ?? scratchPath },
  );
  return { xml: printBlockSnapshotXml({ name, disks }, rfcForm ? "fleece" : "scratch") };
}

export async function renewBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name, leaseMs }: CallRequest<"BlockSnapshots.Renew">,
): Promise<BlockSnapshot> {
  return withUse(context, await renewBlockSnapshot(context, domain, name, leaseMs));
}

/** Answers with the snapshot as it was, but for its scratch space, which is free again. */
export async function deleteBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name, failed }: CallRequest<"BlockSnapshots.Delete">,
  { requestKey }: CallOptions,
): Promise<BlockSnapshot> {
  const outcome = failed ? "failure" : "success";
  return blockSnapshotMessage(await deleteBlockSnapshot(context, domain, name, outcome, requestKey), 0);
}

async function withUse(context: ServiceContext, snapshot: ServiceSnapshot): Promise<BlockSnapshot> {
  return blockSnapshotMessage(snapshot, (await scratchUse(context, snapshot.plan)).usedBytes);
}

export function blockSnapshotMessage(snapshot: ServiceSnapshot, scratchUsedBytes: number): BlockSnapshot {
  const { domain, name, timeMs, heldMs, quiesce, mode, plan, leaseMs, leaseUntilMs, exports, broken } =
    snapshot;
  return {
    domain,
    name,
    owner: ownerOf(snapshot),
    time: timestampFromMs(timeMs),
    consistency: CONSISTENCIES[consistencyOf(mode, quiesce)],
    heldMs: heldMs ?? 0,
    ...quiesceFacts(quiesce),
    checkpoint: plan.checkpoint?.name,
    scratchUsedBytes,
    scratchLimitBytes: mode === "inactive" ? undefined : plan.scratchLimitBytes,
    leaseMs,
    leaseEndTime: timestampFromMs(leaseUntilMs),
    disks: plan.disks.map(({ target, format, sizeBytes, scratchPath, scratchFile }): BlockSnapshotDisk => ({
      target,
      format: formatName(format),
      sizeBytes,
      scratchFile: mode === "inactive" ? undefined : (scratchFile ?? scratchPath),
    })),
    exports: exports.map((open) =>
      blockExportMessage({ ...open, domain, snapshot: name, ...(broken === undefined ? {} : { broken }) }),
    ),
    broken,
  };
}
