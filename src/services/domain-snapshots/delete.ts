import type {
  DeleteDomainSnapshotRequest,
  DeleteOutcome,
  DeletionOptions,
  DomainSnapshot,
  DomainSnapshots,
  MergedLayer,
} from "../../model/domain-snapshot.js";
import { childrenOf } from "../../model/domain-snapshot.js";
import {
  afterMerge,
  knownFiles,
  type LayerMerge,
  mergedLayer,
  planLayerDeletion,
  withoutSnapshot,
} from "../../model/layer-plan.js";
import type { DeletionJournal } from "../../model/operation.js";
import type { LayerMerger } from "../../ports/layer-merger.js";
import { FleeceError } from "../../shared/errors.js";
import { randomId } from "../../shared/ids.js";
import type { ServiceContext } from "../context.js";
import { requireDomain, withDomain } from "../context.js";
import type { DomainSession } from "../domain-session.js";
import { Operation } from "../operation.js";
import { deleteInternal } from "./internal.js";
import type { LayerOptions } from "./layer-options.js";
import { readSnapshot, refuseOpenSnapshots } from "./read-snapshot.js";
import { removeUnnamed, settleDeletion } from "./settle-deletion.js";

/**
 * Deletes a domain snapshot; what others need of its content is merged into their files first. Children get its parent. Fails
 * with DOMAIN_SNAPSHOT_NOT_FOUND, DOMAIN_SNAPSHOT_IN_USE if it has clones, DOMAIN_BUSY, or with what a merge fails with: then
 * the domain and all other snapshots are as they were, and the snapshot itself can only be deleted again if a merge had begun
 * to replace its content.
 */
export async function deleteDomainSnapshot(
  context: ServiceContext,
  request: DeleteDomainSnapshotRequest,
  options: DeletionOptions = {},
): Promise<DeleteOutcome> {
  const { domain, name } = request;
  requireDomain(context, domain);
  return withDomain(context, domain, `delete of domain snapshot ${name} of ${domain}`, async (session) => {
    // A monitor serves one client at a time.
    await session.close();
    const { all, snapshot } = await readSnapshot(context, domain, name);
    const present = await checkClones(context, all, snapshot);
    const reparented = childrenOf(present, name).map((child) => child.name);
    const onPlanned = async (merged: readonly MergedLayer[]): Promise<void> =>
      options.onPlanned?.({ name, merged, reparented });
    if (request.metadataOnly === true) {
      const left = filesLeft(snapshot);
      await onPlanned(left);
      await context.domainSnapshots.write(withoutSnapshot(present, name));
      return { name, merged: left, reparented };
    }
    await refuseOpenSnapshots(context, domain);
    const merged =
      snapshot.kind === "internal"
        ? await deleteInternal(context, session, present, snapshot, { ...options, onPlanned })
        : await new Deletion(context, session, { ...options, onPlanned }).run(present, snapshot);
    return { name, merged, reparented };
  });
}

function filesLeft({ disks, memory }: DomainSnapshot): readonly MergedLayer[] {
  return [
    ...disks.map(({ target, file }): MergedLayer => ({ target, how: "left", from: file })),
    ...(memory?.kind === "external" ? [{ target: "memory", how: "left", from: memory.file } as const] : []),
  ];
}

/** The document without clones whose directory is gone: nobody uses the snapshot by them any more. */
async function checkClones(
  { snapshotFiles, log }: ServiceContext,
  all: DomainSnapshots,
  { name }: DomainSnapshot,
): Promise<DomainSnapshots> {
  const snapshots: DomainSnapshot[] = [];
  for (const snapshot of all.snapshots) {
    const clones = [];
    for (const clone of snapshot.clones) {
      if (await snapshotFiles.exists(clone.directory)) clones.push(clone);
      else
        log.info(
          { snapshot: snapshot.name, directory: clone.directory },
          "The directory of a clone is gone, so the clone does not count any more",
        );
    }
    snapshots.push({ ...snapshot, clones });
  }
  const directories =
    snapshots.find((each) => each.name === name)?.clones.map(({ directory }) => directory) ?? [];
  if (directories.length === 0) return { ...all, snapshots };
  throw new FleeceError(
    "DOMAIN_SNAPSHOT_IN_USE",
    `Domain snapshot ${name} of ${all.domain} is the base of clones: ${directories.join(", ")}; remove them first`,
    { facts: { domain: all.domain, snapshot: name, clones: directories } },
  );
}

/** One deletion of an external snapshot. The document is always true of the files: it is written right after each merge. */
class Deletion {
  readonly #context: ServiceContext;
  readonly #session: DomainSession;
  readonly #options: LayerOptions;

  constructor(context: ServiceContext, session: DomainSession, options: LayerOptions) {
    this.#context = context;
    this.#session = session;
    this.#options = options;
  }

  async run(all: DomainSnapshots, snapshot: DomainSnapshot): Promise<DeleteOutcome["merged"]> {
    const { signal, onProgress, onPlanned } = this.#options;
    onProgress?.({ phase: "preparing" });
    await using merger = await this.#context.layers.open(all.domain, signal);
    await merger.checkIdle(signal);
    const disks = planLayerDeletion(all, snapshot, await merger.look(knownFiles(all), signal));
    const merges = disks.flatMap((disk) => disk.merges);
    const removed = disks.flatMap(({ target, removed: from }) =>
      from === undefined ? [] : [{ target, how: "removed" as const, from }],
    );
    const layers = [...merges.map(mergedLayer), ...removed];
    await onPlanned(layers);
    const operation = await this.#begin(all.domain, snapshot, disks);
    let now = all;
    try {
      for (const merge of merges) now = await this.#merge(now, merge, { snapshot, merger, operation });
      now = withoutSnapshot(now, snapshot.name);
      await this.#context.domainSnapshots.write(now);
    } catch (error) {
      await merger[Symbol.asyncDispose]();
      await settleDeletion(this.#context, this.#session, operation);
      throw error;
    }
    onProgress?.({ phase: "finishing" });
    await removeUnnamed(this.#context, now, subjectOf(operation));
    await operation.end();
    return layers;
  }

  async #begin(
    domain: string,
    snapshot: DomainSnapshot,
    disks: ReturnType<typeof planLayerDeletion>,
  ): Promise<Operation> {
    const { store, clock } = this.#context;
    const { memory, directory, name } = snapshot;
    const volumes = snapshot.disks.flatMap(({ file, volume }) =>
      volume === undefined ? [] : [{ file, volume }],
    );
    const isVolume = (path: string): boolean => volumes.some(({ file }) => file === path);
    const files = disks.flatMap(({ merges, removed }) => [
      ...merges.flatMap(({ how, upper }) => (how === "commit" ? [upper] : [])),
      ...(removed === undefined || isVolume(removed) ? [] : [removed]),
    ]);
    return await Operation.begin(store, {
      id: randomId(8),
      domain,
      startedAtMs: clock.now(),
      subject: {
        kind: "domain-snapshot-delete",
        snapshot: name,
        phase: "merging",
        // Last: as long as it is there, the disks are what is missing.
        files: [...files, ...(memory?.kind === "external" ? [memory.file] : [])],
        ...(volumes.length === 0 ? {} : { volumes }),
        ...(directory === undefined ? {} : { directory }),
      },
    });
  }

  async #merge(
    all: DomainSnapshots,
    merge: LayerMerge,
    parts: { readonly snapshot: DomainSnapshot; readonly merger: LayerMerger; readonly operation: Operation },
  ): Promise<DomainSnapshots> {
    const { snapshot, merger, operation } = parts;
    const { signal, onProgress } = this.#options;
    const { domainSnapshots } = this.#context;
    let now = all;
    if (merge.how === "commit") {
      now = markDeleting(all, snapshot.name);
      await domainSnapshots.write(now);
    }
    await operation.setSubject({ ...subjectOf(operation), merge, phase: "merging" });
    await merger.merge(merge, {
      id: operation.record.id,
      undo: operation,
      signal,
      onBrink: async () => {
        if (merger.mode === "inactive" || merge.how !== "commit" || !merge.active) return;
        await operation.setSubject({ ...subjectOf(operation), phase: "brink" });
      },
      onProgress: (doneBytes, totalBytes) =>
        onProgress?.({ phase: "merging", target: merge.target, doneBytes, totalBytes }),
    });
    await operation.setSubject({ ...subjectOf(operation), phase: "merged" });
    now = afterMerge(now, merge);
    await domainSnapshots.write(now);
    return now;
  }
}

function markDeleting(all: DomainSnapshots, name: string): DomainSnapshots {
  return {
    ...all,
    snapshots: all.snapshots.map((snapshot) =>
      snapshot.name === name ? { ...snapshot, deleting: true } : snapshot,
    ),
  };
}

function subjectOf({ record: { subject } }: Operation): DeletionJournal {
  if (subject.kind === "domain-snapshot-delete") return subject;
  throw new FleeceError("INTERNAL", `Expected the journal of a deletion, got that of a ${subject.kind}`);
}
