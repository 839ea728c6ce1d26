import path from "node:path";
import {
  type CloneDomainSnapshotRequest,
  type CloneOptions,
  type CloneOutcome,
  type DomainSnapshot,
  type DomainSnapshotOptions,
  type DomainSnapshots,
  filesOfDisk,
  type SnapshotDisk,
} from "../../model/domain-snapshot.js";
import { rewriteArguments } from "../../model/machine-arguments.js";
import { errorMessage, FleeceError } from "../../shared/errors.js";
import { randomId } from "../../shared/ids.js";
import type { ServiceContext } from "../context.js";
import { requireDomain, withDomain } from "../context.js";
import { Operation } from "../operation.js";
import { checkVolumes } from "./check-volumes.js";
import { readSnapshot, refuseDeleting } from "./read-snapshot.js";
import { settleClone } from "./settle-clone.js";

/**
 * Files for another domain that begins where the snapshot was: overlays over its disks, independent images where it is internal, and a
 * copy of its memory. The clone stands in the document before it has a file, so that nobody deletes its base. Fails with
 * DOMAIN_SNAPSHOT_NOT_FOUND, ALREADY_EXISTS, PATH_NOT_FOUND, DAMAGED if the memory is not what it was, NO_SPACE; nothing is left then.
 */
export async function cloneDomainSnapshot(
  context: ServiceContext,
  request: CloneDomainSnapshotRequest,
  options: CloneOptions = {},
): Promise<CloneOutcome> {
  const { domain, name, directory } = request;
  requireDomain(context, domain);
  await checkDirectory(context, directory);
  return withDomain(context, domain, `clone of domain snapshot ${name} of ${domain}`, async (session) => {
    const { all, snapshot } = await readSnapshot(context, domain, name);
    await checkComplete(context, snapshot);
    const id = randomId(8);
    const draft = path.join(path.dirname(directory), `.fleece-${id}`);
    const cloned = outcome(context, all, snapshot, directory);
    const operation = await Operation.begin(context.store, {
      ...{ id, domain, startedAtMs: context.clock.now() },
      subject: { kind: "domain-snapshot-clone", snapshot: name, directory },
    });
    try {
      await operation.register({ kind: "directory", path: draft });
      // Overlays need their base for ever; what is inside an image is copied out.
      if (snapshot.kind === "external") await context.domainSnapshots.write(withClone(context, all, request));
      await context.snapshotFiles.makeDirectory(draft);
      await fill(context, snapshot, draft, options);
      options.onProgress?.({ phase: "finishing" });
      await options.onComplete?.(cloned, (await context.outputs.identityOf(draft)) ?? "");
      await context.snapshotFiles.rename(draft, directory);
    } catch (error) {
      try {
        await settleClone(context, session, operation);
      } catch (failure) {
        context.log.warn({ domain, operation: id }, errorMessage(failure));
      }
      throw error;
    }
    await operation.end();
    return cloned;
  });
}

async function checkDirectory({ snapshotFiles }: ServiceContext, directory: string): Promise<void> {
  if (!path.isAbsolute(directory)) {
    throw new FleeceError("INVALID_ARGUMENT", `Expected an absolute path for the clone, got ${directory}`);
  }
  if (!(await snapshotFiles.exists(directory))) return;
  throw new FleeceError("ALREADY_EXISTS", `Expected a directory that does not exist, found ${directory}`, {
    facts: { path: directory },
  });
}

async function checkComplete(
  { snapshotFiles, volumes }: ServiceContext,
  snapshot: DomainSnapshot,
): Promise<void> {
  refuseDeleting(snapshot, "cloned");
  await checkVolumes(volumes, snapshot.disks);
  for (const disk of snapshot.disks) await snapshotFiles.checkImage(disk);
}

function withClone(
  { clock }: ServiceContext,
  all: DomainSnapshots,
  { name, directory }: CloneDomainSnapshotRequest,
): DomainSnapshots {
  const clone = { directory, timeMs: clock.now() };
  return {
    ...all,
    snapshots: all.snapshots.map((snapshot) =>
      snapshot.name === name
        ? { ...snapshot, clones: [...snapshot.clones.filter((each) => each.directory !== directory), clone] }
        : snapshot,
    ),
  };
}

async function fill(
  { snapshotFiles }: ServiceContext,
  { name, kind, disks, memory }: DomainSnapshot,
  draft: string,
  { signal, onProgress }: DomainSnapshotOptions,
): Promise<void> {
  for (const disk of disks) {
    onProgress?.({ phase: "disks", target: disk.target });
    const file = path.join(draft, imageName(disk));
    if (kind === "internal") await snapshotFiles.extractSnapshot(disk.file, name, file, signal);
    else await snapshotFiles.createOverlay({ path: file, base: disk }, signal);
  }
  if (memory?.kind !== "external") return;
  await snapshotFiles.copyMemory(memory, path.join(draft, MEMORY), {
    signal,
    onProgress: (doneBytes) => onProgress?.({ phase: "memory", doneBytes, totalBytes: memory.sizeBytes }),
  });
}

const MEMORY = "memory.save";

function imageName({ target }: SnapshotDisk): string {
  return `${target}.qcow2`;
}

function outcome(
  context: ServiceContext,
  all: DomainSnapshots,
  snapshot: DomainSnapshot,
  directory: string,
): CloneOutcome {
  const disks = snapshot.disks.map((disk) => ({
    target: disk.target,
    file: path.join(directory, imageName(disk)),
  }));
  const memory = snapshot.memory?.kind === "external" ? path.join(directory, MEMORY) : undefined;
  const words = argumentsOf(context, all, snapshot, { disks, memory });
  return {
    ...{ directory, disks },
    ...(memory === undefined ? {} : { memory }),
    ...(words === undefined ? {} : { arguments: words }),
  };
}

/** Those of the original on the clone's disks. Names, network addresses and sockets are still the original's. */
function argumentsOf(
  { log }: ServiceContext,
  all: DomainSnapshots,
  { name, machine }: DomainSnapshot,
  clone: { readonly disks: CloneOutcome["disks"]; readonly memory: string | undefined },
): readonly string[] | undefined {
  if (machine === undefined) return undefined;
  const disks = clone.disks.map(({ target, file }) => ({
    target,
    files: filesOfDisk(all, target),
    overlay: file,
  }));
  try {
    const words = rewriteArguments(machine.arguments, {
      ...{ disks, cwd: "/", machineType: machine.type },
      incoming: clone.memory !== undefined,
    });
    // The same machine, but it starts by itself.
    if (clone.memory === undefined) return words.filter((word) => word !== "-S");
    return words.with(-1, `exec:cat ${quoted(clone.memory)}`);
  } catch (error) {
    log.info({ snapshot: name }, `No argument list for the clone: ${errorMessage(error)}`);
    return undefined;
  }
}

/** For the shell that QEMU gives it to. */
function quoted(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
