import { chainFindings } from "../model/chain-findings.js";
import { domainFindings } from "../model/domain-findings.js";
import type { Finding } from "../model/finding.js";
import { severityOf } from "../model/finding.js";
import type { LevelDecision } from "../model/level.js";
import { decideLevel } from "../model/level.js";
import type { FoundOperation } from "../model/operation-findings.js";
import { domainTrouble, explains, foreignAgent, operationFindings } from "../model/operation-findings.js";
import type { Place, Trouble } from "../model/place-findings.js";
import { keyFinding, repositoryFinding, scratchFinding, stateFinding } from "../model/place-findings.js";
import type { DomainState } from "../model/snapshot-plan.js";
import type { BlockDriver } from "../ports/block-driver.js";
import type { BackupRepository } from "../ports/repository.js";
import type { OperationRecord } from "../ports/state-store.js";
import { FleeceError, isFleeceError } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";
import { requireDomain, requireRepository } from "./context.js";
import { readDoubts } from "./doubts.js";
import { DomainSession } from "./domain-session.js";
import { brokenBy } from "./open-snapshots.js";
import { isOver } from "./recovery.js";

export interface PreflightReport {
  readonly domain: string;
  readonly repository: string;
  /** What was found of the domain; left out when it could not be looked at. */
  readonly state?: DomainState;
  /** Of the next backup of all disks; left out when it cannot be told. */
  readonly decision?: LevelDecision;
  readonly findings: readonly Finding[];
  /** No finding is a blocker: the next backup will not be refused for anything that can be known beforehand. */
  readonly ready: boolean;
}

/**
 * Looks at everything that decides how the next backup of a domain goes. Reads only: not even what killed operations left
 * is put in order. What cannot be looked at is a finding, not an error; only a wrong name is one.
 */
export async function preflight(
  context: ServiceContext,
  request: { readonly domain: string; readonly repository?: string; readonly signal?: AbortSignal },
): Promise<PreflightReport> {
  const domain = requireDomain(context, request.domain);
  const repository = requireRepository(context, request.repository);
  const stateTrouble = await troubleOf(() => context.store.checkUsable());
  const look = await lookAtDomain(context, domain, request.signal);
  const { state } = look;
  const stored = await lookAtRepository(repository, domain);
  const { entries } = stored;
  const decision =
    state === undefined || entries === undefined
      ? undefined
      : decideLevel(state.disks, entries, undefined, await readDoubts(context, domain, entries));
  const findings: readonly Finding[] = [
    ...look.findings,
    ...(state === undefined || state.mode === "inactive"
      ? []
      : [scratchFinding(domain, state.disks, await scratchPlace(context))]),
    repositoryFinding(domain, state?.disks ?? [], { name: repository.name, place: stored.place }, decision),
    ...(await lookAtKey(domain, repository, decision, request.signal)),
    stateFinding(domain, stateTrouble ?? look.journalTrouble),
    ...(state === undefined || entries === undefined || decision === undefined
      ? []
      : chainFindings(state, entries, decision)),
  ];
  return {
    domain,
    repository: repository.name,
    ...(state === undefined ? {} : { state }),
    ...(decision === undefined ? {} : { decision }),
    findings,
    ready: findings.every((finding) => severityOf(finding) !== "blocker"),
  };
}

interface Look {
  readonly state?: DomainState;
  readonly findings: readonly Finding[];
  readonly journalTrouble?: Trouble;
}

async function lookAtDomain(context: ServiceContext, domain: string, signal?: AbortSignal): Promise<Look> {
  const { store } = context;
  try {
    const before = await store.operations(domain);
    if ((await store.holder(domain)) !== undefined) return await busy(context, domain);
    const session = new DomainSession(context.drivers, domain);
    try {
      const driver = await session.driver(signal);
      const state = await driver.inspect(signal);
      const operations = await lookAtOperations(context, domain, driver);
      const known = [...before, ...(await store.operations(domain))].map(({ id }) => id);
      const explained = operations.filter(explains).map(({ id }) => id);
      return {
        state,
        findings: [
          ...domainFindings(state, new Set(explained)),
          ...foreignAgent(state, new Set(known)),
          ...operationFindings(domain, operations),
        ],
      };
    } catch (error) {
      const trouble = toTrouble(error, signal);
      if (trouble.code === "DOMAIN_UNREACHABLE" && (await store.holder(domain)) !== undefined) {
        return await busy(context, domain);
      }
      const monitorInUse = isFleeceError(error) && error.facts["monitorInUse"] === true;
      const operations = await lookAtOperations(context, domain);
      return {
        findings: [domainTrouble(domain, trouble, monitorInUse), ...operationFindings(domain, operations)],
      };
    } finally {
      await session.close();
    }
  } catch (error) {
    return { findings: [], journalTrouble: toTrouble(error, signal) };
  }
}

/** Whoever holds the domain has its monitor too, and owns what is in the journal. */
async function busy({ store }: ServiceContext, domain: string): Promise<Look> {
  const holder = (await store.holder(domain)) ?? "an operation that has just ended";
  const message = `Domain ${domain} is busy: ${holder}`;
  return { findings: [domainTrouble(domain, { code: "DOMAIN_BUSY", message }, false)] };
}

/** Without a driver nothing can be said of open snapshots but that they are there. */
async function lookAtOperations(
  context: ServiceContext,
  domain: string,
  driver?: BlockDriver,
): Promise<readonly FoundOperation[]> {
  const found: FoundOperation[] = [];
  for (const record of await context.store.operations(domain)) {
    if (isOver(context, record)) found.push(await unfinished(context, record));
    else if (record.subject.kind === "block-snapshot") {
      const { id, startedAtMs, subject } = record;
      const { name, leaseUntilMs, plan } = subject;
      const broken = driver === undefined ? undefined : await brokenBy(subject, driver);
      const targets = plan.disks.map(({ target }) => target);
      found.push(
        broken === undefined
          ? { id, startedAtMs, kind: "open-snapshot", name, leaseUntilMs, targets }
          : { id, startedAtMs, kind: "broken-snapshot", name, why: broken.message },
      );
    }
  }
  return found;
}

const SNAPSHOT_WORKS = {
  "domain-snapshot-delete": "delete",
  "domain-snapshot-clone": "clone",
  "domain-snapshot-internal": "internal",
} as const;

async function unfinished(
  { repositories }: ServiceContext,
  { id, startedAtMs, domain, subject }: OperationRecord,
): Promise<FoundOperation> {
  switch (subject.kind) {
    case "backup": {
      const { backupId } = subject;
      const published = await hasBackup(repositories.get(subject.repository), domain, backupId);
      return { id, startedAtMs, kind: "backup", backupId, published };
    }
    case "domain-snapshot-create":
      return { id, startedAtMs, kind: "unfinished-domain-snapshot", name: subject.plan.name, work: "create" };
    case "restore":
    case "boot-test":
    case "copy":
      return { id, startedAtMs, kind: subject.kind, backupId: subject.backupId };
    case "domain-snapshot-revert": {
      const { name, phase } = subject;
      return { id, startedAtMs, kind: "unfinished-revert", name, phase };
    }
    case "domain-snapshot-delete":
    case "domain-snapshot-clone":
    case "domain-snapshot-internal": {
      const work = SNAPSHOT_WORKS[subject.kind];
      return { id, startedAtMs, kind: "unfinished-domain-snapshot", name: subject.snapshot, work };
    }
    case "block-snapshot": {
      const { name, phase, leaseUntilMs } = subject;
      return phase === "open"
        ? { id, startedAtMs, kind: "expired-snapshot", name, leaseUntilMs }
        : { id, startedAtMs, kind: "unfinished-snapshot", name };
    }
  }
}

/** A repository that cannot be read has a finding of its own. */
async function hasBackup(
  repository: BackupRepository | undefined,
  domain: string,
  id: string,
): Promise<boolean> {
  try {
    return (await repository?.has(domain, id)) === true;
  } catch (error) {
    toTrouble(error);
    return false;
  }
}

async function lookAtRepository(
  repository: BackupRepository,
  domain: string,
): Promise<{ readonly place: Place; readonly entries?: Awaited<ReturnType<BackupRepository["list"]>> }> {
  try {
    await repository.checkWritable();
    const entries = await repository.list(domain);
    return { place: { usable: true, freeBytes: await repository.freeBytes() }, entries };
  } catch (error) {
    return { place: { usable: false, trouble: toTrouble(error) } };
  }
}

/** Nothing of a repository that needs no key. */
async function lookAtKey(
  domain: string,
  repository: BackupRepository,
  decision: LevelDecision | undefined,
  signal: AbortSignal | undefined,
): Promise<readonly Finding[]> {
  const parent = decision?.level === "incremental" ? decision.parent : undefined;
  try {
    const isEncrypted = await repository.checkKey(parent, signal);
    return isEncrypted ? [keyFinding(domain, repository.name, undefined)] : [];
  } catch (error) {
    const trouble = toTrouble(error, signal);
    // What else is wrong with the repository or the chain has findings of its own.
    const isOfKey = trouble.code === "KEY_UNAVAILABLE" || trouble.code === "KEY_WRONG";
    return isOfKey ? [keyFinding(domain, repository.name, trouble)] : [];
  }
}

async function scratchPlace({ scratch }: ServiceContext): Promise<Place> {
  try {
    await scratch.check();
    return { usable: true, freeBytes: await scratch.freeBytes() };
  } catch (error) {
    return { usable: false, trouble: toTrouble(error) };
  }
}

async function troubleOf(action: () => Promise<void>): Promise<Trouble | undefined> {
  try {
    await action();
    return undefined;
  } catch (error) {
    return toTrouble(error);
  }
}

/** Defects and the user's interruption are not findings: they are thrown. */
function toTrouble(error: unknown, signal?: AbortSignal): Trouble {
  if (!(error instanceof FleeceError) || error.code === "INTERRUPTED" || signal?.aborted === true)
    throw error;
  return { code: error.code, message: error.message };
}
