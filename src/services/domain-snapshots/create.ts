import { posix } from "node:path";
import type {
  CreateDomainSnapshotRequest,
  DomainSnapshot,
  DomainSnapshotOptions,
} from "../../model/domain-snapshot.js";
import type { CreationPlan, DomainFacts } from "../../model/domain-snapshot-plan.js";
import { checkSpace, filesOf, kindsOf, planCreation } from "../../model/domain-snapshot-plan.js";
import { checkName } from "../../model/names.js";
import type { DomainSnapshotJournal } from "../../model/operation.js";
import type { SnapshotTaker } from "../../ports/snapshot-taker.js";
import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import { randomId } from "../../shared/ids.js";
import type { ServiceContext } from "../context.js";
import { requireDomain, withDomain } from "../context.js";
import type { DomainSession } from "../domain-session.js";
import { Operation } from "../operation.js";
import { logMoment, planQuiesce } from "../quiesce.js";
import { createInternal } from "./internal.js";
import { finishCreation, settleCreation } from "./finish-creation.js";
import { blockSnapshotHolders } from "./read-snapshot.js";
import { repeatedCreation } from "./repeated.js";

/** Takes a snapshot; see `createInternal` for those inside the images. A repeat with the same key finds it. */
export function createDomainSnapshot(
  context: ServiceContext,
  request: CreateDomainSnapshotRequest,
  options: DomainSnapshotOptions = {},
): Promise<DomainSnapshot> {
  const kinds = kindsOf(request);
  const create = kinds.has("internal") && kinds.size === 1 ? createInternal : createExternal;
  return create(context, request, options);
}

/**
 * Takes an external snapshot: of memory and all disks at one moment, or of disks alone. If it fails, the guest goes on as before and
 * nothing is left; but if the memory turns out to be lost after the disks have changed, the snapshot is there without it, and
 * the error (MEMORY_SAVE_FAILED) says so.
 */
function createExternal(
  context: ServiceContext,
  request: CreateDomainSnapshotRequest,
  options: DomainSnapshotOptions,
): Promise<DomainSnapshot> {
  const domain = requireDomain(context, request.domain);
  if (request.name !== undefined) checkName("domain snapshot", request.name);
  const purpose = `domain-snapshot create ${domain}${request.name === undefined ? "" : ` ${request.name}`}`;
  return withDomain(context, domain, purpose, async (session) => {
    const made = repeatedCreation(await context.domainSnapshots.read(domain), request);
    if (made !== undefined) return made;
    // A monitor serves one client at a time.
    await session.close();
    await using taker = await context.takers.open(domain, options.signal);
    options.onProgress?.({ phase: "preparing" });
    const plan = await makePlan(context, request, taker, options.signal);
    await checkPlaces(context, plan);
    const begun = { kind: "domain-snapshot-create", phase: "preparing", plan } as const;
    const header = { id: plan.id, domain, startedAtMs: context.clock.now() };
    const operation = await Operation.begin(context.store, { ...header, subject: begun });
    try {
      const subject = await take(context, operation, begun, taker, options);
      await taker.close();
      return await finishCreation(context, session, operation, subject, options);
    } catch (error) {
      await taker.close();
      const snapshot = await settleQuietly(context, session, operation);
      if (snapshot === undefined) throw error;
      if (plan.memory !== undefined && snapshot.memory === undefined) throw withoutMemory(snapshot, error);
      // All of it is there, and the guest as it was: what failed first has been mended.
      context.log.warn({ domain, snapshot: snapshot.name }, errorMessage(error));
      return snapshot;
    }
  });
}

async function makePlan(
  context: ServiceContext,
  request: CreateDomainSnapshotRequest,
  taker: SnapshotTaker,
  signal: AbortSignal | undefined,
): Promise<CreationPlan> {
  const { domain, memoryPath } = request;
  const all = await context.domainSnapshots.read(domain);
  const facts = await taker.look(all.layers, signal);
  const files = facts.disks.map(({ file }) => file);
  return planCreation(request, {
    id: randomId(8),
    nowMs: context.clock.now(),
    facts,
    all,
    directory: request.directory ?? (await context.domainSnapshots.directory(domain)),
    memoryPathIsDirectory:
      memoryPath !== undefined && (await context.snapshotFiles.place(memoryPath)) !== undefined,
    holders: await blockSnapshotHolders(context, domain),
    quiesce: quiescePlan(context, request, facts),
    ...(request.lvm === true ? { volumes: await context.volumes.find(files, signal) } : {}),
  });
}

/** With memory there is nothing to quiesce, and an inactive domain is clean. */
function quiescePlan(
  context: ServiceContext,
  { domain, diskOnly, quiesce }: CreateDomainSnapshotRequest,
  { state }: DomainFacts,
): ReturnType<typeof planQuiesce> {
  if (diskOnly !== true || state === "inactive") return undefined;
  return planQuiesce(context, domain, quiesce);
}

async function checkPlaces({ snapshotFiles }: ServiceContext, plan: CreationPlan): Promise<void> {
  const { directory } = plan;
  const files = filesOf(plan);
  for (const path of [...(directory === undefined ? [] : [directory]), ...files.map((file) => file.path)]) {
    if (!(await snapshotFiles.exists(path))) continue;
    throw new FleeceError("ALREADY_EXISTS", `Expected no file at ${path}, there is one`, { facts: { path } });
  }
  const places = new Map<string, Awaited<ReturnType<typeof snapshotFiles.place>>>();
  for (const { path } of files) {
    const parent = posix.dirname(path);
    // What is to be made has the space of the directory that it will be in.
    const place = await snapshotFiles.place(parent === directory ? posix.dirname(parent) : parent);
    if (place === undefined) {
      throw new FleeceError("PATH_NOT_FOUND", `Expected a directory for ${path}, there is none`, {
        facts: { path: parent },
      });
    }
    places.set(parent, place);
  }
  checkSpace(plan, (path) => places.get(path));
}

async function take(
  context: ServiceContext,
  operation: Operation,
  subject: DomainSnapshotJournal,
  taker: SnapshotTaker,
  { signal, onProgress }: DomainSnapshotOptions,
): Promise<DomainSnapshotJournal> {
  const { plan } = subject;
  if (plan.directory !== undefined) await makeDirectory(context, operation, plan.directory);
  await taker.addOverlays(plan, operation, signal);
  const { volumes = [] } = plan;
  const entries = volumes.map(({ snapshot: volume }) => ({ kind: "volume", volume }) as const);
  if (entries.length > 0) await operation.register(...entries);
  const moment = await taker.take(plan, {
    undo: operation,
    signal,
    onMemory: (doneBytes, totalBytes) => onProgress?.({ phase: "memory", doneBytes, totalBytes }),
    takeVolumes: async () => {
      for (const volume of volumes) await context.volumes.take(volume);
    },
    beforeDisks: async (soFar) => {
      onProgress?.({ phase: "disks" });
      const host = context.clock.hostTime().start;
      await operation.setSubject({ ...subject, ...soFar, phase: "switching", host });
    },
  });
  const quiet = moment.quiesce === undefined ? {} : { quiesce: moment.quiesce };
  logMoment(context, plan.domain, { heldMs: moment.pausedMs, ...quiet });
  const taken = { ...subject, ...moment, host: context.clock.hostTime().start };
  // Of an inactive domain nothing has changed yet: its document is what changes it.
  if (taker.mode === "inactive") return taken;
  const switched: DomainSnapshotJournal = { ...taken, phase: "switched" };
  await operation.setSubject(switched);
  return switched;
}

async function makeDirectory(
  { snapshotFiles }: ServiceContext,
  operation: Operation,
  path: string,
): Promise<void> {
  const entry = { kind: "empty-directory", path } as const;
  await operation.register(entry);
  try {
    await snapshotFiles.makeDirectory(path);
  } catch (error) {
    // Somebody else's, then.
    if (isFleeceError(error, "ALREADY_EXISTS")) await operation.settle(entry);
    throw error;
  }
}

/** The snapshot that is there in spite of a failure, if any. What cannot be put in order now is left to the next command. */
async function settleQuietly(
  context: ServiceContext,
  session: DomainSession,
  operation: Operation,
): Promise<DomainSnapshot | undefined> {
  try {
    return await settleCreation(context, session, operation);
  } catch (error) {
    context.log.warn({ domain: session.domain, operation: operation.record.id }, errorMessage(error));
    return undefined;
  }
}

function withoutMemory({ name }: DomainSnapshot, cause: unknown): FleeceError {
  if (isFleeceError(cause, "MEMORY_SAVE_FAILED")) return cause;
  const message = `The memory of domain snapshot ${name} is lost, so that it is kept as a disk-only one: ${errorMessage(cause)}`;
  return new FleeceError("MEMORY_SAVE_FAILED", message, { cause, facts: { snapshot: name } });
}
