import type { DomainSnapshot, DomainSnapshotOptions } from "../../model/domain-snapshot.js";
import type { RevertFacts } from "../../model/revert-plan.js";
import type { DomainState } from "../../model/snapshot-plan.js";
import type { Machine } from "../../ports/machines.js";
import { FleeceError, isFleeceError } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import type { DomainSession } from "../domain-session.js";
import { checkVolumes } from "./check-volumes.js";
import type { RevertOrder } from "./revert-order.js";

/** What a revert to an external snapshot begins with. Its monitor is ours until it is disposed. */
export interface RevertScene extends AsyncDisposable {
  readonly facts: RevertFacts;
  /** The QEMU that runs now, if one does. */
  readonly old: Machine | undefined;
  readonly oldStatus: "running" | "paused" | "other" | undefined;
}

/** Changes nothing. Fails with UNSUPPORTED if the domain's disks cannot go back beside those of its present QEMU. */
export async function openScene(
  context: ServiceContext,
  { session, all, snapshot, request, options: { signal } }: RevertOrder,
): Promise<RevertScene> {
  // The monitor serves one client at a time: what the driver knows comes first, and then it is ours.
  const present = await inspect(session, signal);
  const old = await context.machines.open(session.domain, signal);
  try {
    const facts = {
      ...{ all, snapshot, present, force: request.force === true, nowMs: context.clock.now() },
      machine: await old?.facts(),
    };
    const oldStatus = await old?.status();
    if (old !== undefined && (request.to ?? snapshot.state) !== "inactive") refuseSharedDisks(facts);
    return { facts, old, oldStatus, [Symbol.asyncDispose]: async () => old?.close() };
  } catch (error) {
    await old?.close();
    throw error;
  }
}

async function inspect(
  session: DomainSession,
  signal: AbortSignal | undefined,
): Promise<DomainState | undefined> {
  try {
    return await (await session.driver(signal)).inspect(signal);
  } catch (error) {
    // Inactive, and the configuration lists no disks; if it is more than that, opening its monitor fails, too.
    if (isFleeceError(error, "DOMAIN_UNREACHABLE")) return undefined;
    throw error;
  } finally {
    await session.close();
  }
}

/** A disk that stays as it is would be open in both QEMUs. */
function refuseSharedDisks({ snapshot, present, all }: RevertFacts): void {
  const held = new Set(snapshot.disks.map(({ target }) => target));
  const shared = (present?.disks ?? []).map(({ target }) => target).filter((target) => !held.has(target));
  if (shared.length === 0) return;
  throw new FleeceError(
    "UNSUPPORTED",
    `Domain snapshot ${snapshot.name} does not hold ${shared.join(", ")}, which the running domain ${all.domain} writes to: stop the domain first`,
    { facts: { domain: all.domain, snapshot: snapshot.name, targets: shared.join(", ") } },
  );
}

/** Reads all of the memory, and opens all images. Fails with DAMAGED. */
export async function checkFiles(
  { snapshotFiles, volumes }: ServiceContext,
  { disks, memory }: DomainSnapshot,
  { signal, onProgress }: DomainSnapshotOptions,
): Promise<void> {
  await checkVolumes(volumes, disks, signal);
  for (const disk of disks) {
    onProgress?.({ phase: "checking", target: disk.target });
    await snapshotFiles.checkImage(disk, signal);
  }
  if (memory?.kind !== "external") return;
  const totalBytes = memory.sizeBytes;
  await snapshotFiles.checkMemory(memory, {
    signal,
    onProgress: (doneBytes) => onProgress?.({ phase: "checking", doneBytes, totalBytes }),
  });
}
