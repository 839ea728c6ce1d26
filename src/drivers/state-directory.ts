import type { Stats } from "node:fs";
import { access, constants, lstat, mkdir, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import path from "node:path";
import type { Lease } from "../model/lease.js";
import type {
  DomainLock,
  NoteKind,
  OperationOwner,
  OperationRecord,
  StateStore,
} from "../ports/state-store.js";
import { errnoOf, fileError, FleeceError } from "../shared/errors.js";
import { randomId } from "../shared/ids.js";
import { isOwnerAlive, processOwner } from "./process-owner.js";
import { syncDirectory, writeDurably } from "./durable-files.js";
import { describeHolder, lookAtKernelLock, tryKernelLock } from "./kernel-lock.js";

/**
 * `<stateDir>/domains/<domain>.lock` and `<stateDir>/operations/<domain>/<id>.json`: one file per unfinished operation,
 * always replaced as a whole, so that a kill leaves the old one or the new one. What is finished has no file. Beside it
 * `<id>.lease`, once a lease has been renewed. And `<stateDir>/notes/<kind>/<name>.json`. Domain snapshots: see `DomainSnapshotDirectory`.
 */
export class StateDirectory implements StateStore {
  readonly #root: string;

  constructor(root: string) {
    this.#root = root;
  }

  async lockDomain(domain: string, purpose: string): Promise<DomainLock> {
    await makePrivateDirectory(path.join(this.#root, "domains"));
    const attempt = await tryKernelLock(this.#lockFile(domain), purpose);
    if (attempt.held) return attempt.lock;
    throw new FleeceError("DOMAIN_BUSY", `Domain ${domain} is busy: ${describeHolder(attempt.holder)}`, {
      facts: { domain, holder: attempt.holder?.purpose ?? "" },
    });
  }

  async sweep(): Promise<void> {
    for (const kind of ["operations", "notes", "domain-snapshots"]) {
      for (const name of await entries(path.join(this.#root, kind))) {
        await this.#sweepDirectory(path.join(this.#root, kind, name));
      }
    }
  }

  async holder(domain: string): Promise<string | undefined> {
    const { held, holder } = await lookAtKernelLock(this.#lockFile(domain));
    return held ? describeHolder(holder) : undefined;
  }

  async checkUsable(): Promise<void> {
    for (const name of ["domains", "operations"]) await checkPrivateDirectory(path.join(this.#root, name));
  }

  async operations(domain?: string): Promise<readonly OperationRecord[]> {
    const domains = domain === undefined ? await entries(path.join(this.#root, "operations")) : [domain];
    const records: OperationRecord[] = [];
    for (const name of domains) {
      const directory = this.#directory(name);
      for (const file of await entries(directory)) {
        const record = file.endsWith(".json") ? await readRecord(path.join(directory, file)) : undefined;
        if (record !== undefined) records.push(await this.#withLease(record));
      }
    }
    return records.toSorted((a, b) => a.startedAtMs - b.startedAtMs);
  }

  async save(record: OperationRecord): Promise<void> {
    await replaceDurably(this.#directory(record.domain), `${record.id}.json`, record);
  }

  async saveLease({ domain, id }: Pick<OperationRecord, "id" | "domain">, lease: Lease): Promise<void> {
    await replaceDurably(this.#directory(domain), `${id}${LEASE}`, lease);
  }

  async notes(kind: NoteKind): Promise<readonly string[]> {
    const files = await entries(this.#notes(kind));
    return files.filter((file) => file.endsWith(".json")).map((file) => file.slice(0, -".json".length));
  }

  async readNote(kind: NoteKind, name: string): Promise<unknown> {
    try {
      return JSON.parse(await readFile(path.join(this.#notes(kind), `${name}.json`), "utf8")) as unknown;
    } catch {
      return undefined;
    }
  }

  async writeNote(kind: NoteKind, name: string, value: unknown): Promise<void> {
    await replaceDurably(this.#notes(kind), `${name}.json`, value);
  }

  async removeNote(kind: NoteKind, name: string): Promise<void> {
    await rm(path.join(this.#notes(kind), `${name}.json`), { force: true });
  }

  self(): OperationOwner {
    return processOwner();
  }

  isAlive(owner: OperationOwner): boolean {
    return isOwnerAlive(owner);
  }

  async remove({ domain, id }: Pick<OperationRecord, "id" | "domain">): Promise<void> {
    const directory = this.#directory(domain);
    await rm(path.join(directory, `${id}.json`), { force: true });
    await rm(path.join(directory, `${id}${LEASE}`), { force: true });
    if (await exists(directory)) await syncDirectory(directory);
  }

  async #sweepDirectory(directory: string): Promise<void> {
    for (const file of await entries(directory)) {
      const writer = temporaryOwner(file);
      // Asked for by name: a list may miss a record that is being replaced.
      const isAlone =
        file.endsWith(LEASE) && !(await exists(path.join(directory, file.replace(/\.lease$/, ".json"))));
      if (isAlone || (writer !== undefined && !this.isAlive(writer))) {
        await rm(path.join(directory, file), { force: true });
      }
    }
  }

  async #withLease(record: OperationRecord): Promise<OperationRecord> {
    const { subject, domain, id } = record;
    if (subject.kind !== "block-snapshot") return record;
    const lease = await readLease(path.join(this.#directory(domain), `${id}${LEASE}`));
    return lease === undefined ? record : { ...record, subject: { ...subject, ...lease } };
  }

  #notes(kind: NoteKind): string {
    return path.join(this.#root, "notes", kind);
  }

  #lockFile(domain: string): string {
    return path.join(this.#root, "domains", `${domain}.lock`);
  }

  #directory(domain: string): string {
    return path.join(this.#root, "operations", domain);
  }
}

const LEASE = ".lease";

/** Undefined if it was never renewed. */
async function readLease(file: string): Promise<Lease | undefined> {
  try {
    return JSON.parse(await readFile(file, "utf8")) as Lease;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error instanceof SyntaxError
      ? unreadable(file, "it is not JSON", error)
      : fileError(error, "read", file);
  }
}

/** Replaces a file of JSON in a private directory: the old one or the new one is there at any time. Durable when it resolves. */
export async function replaceDurably(directory: string, name: string, value: unknown): Promise<void> {
  await makePrivateDirectory(directory);
  const temporary = path.join(directory, temporaryName(name, processOwner()));
  const file = path.join(directory, name);
  try {
    await writeDurably(temporary, `${JSON.stringify(value, undefined, 2)}\n`);
    await rename(temporary, file);
    await syncDirectory(directory);
  } catch (error) {
    await rm(temporary, { force: true });
    throw fileError(error, "write the journal", file);
  }
}

/** Names its writer, so that a killed one's can be told from a living one's. */
function temporaryName(name: string, { pid, startTicks }: OperationOwner): string {
  return `${name}.${randomId(6)}.${pid}-${startTicks}.tmp`;
}

function temporaryOwner(file: string): OperationOwner | undefined {
  const [, pid, startTicks] = /\.(\d+)-(\d+)\.tmp$/.exec(file) ?? [];
  return pid === undefined ? undefined : { pid: Number(pid), startTicks: Number(startTicks) };
}

/** Creates a directory (0700) with its parents. Idempotent; refuses one that is a link or others may write to. */
export async function makePrivateDirectory(directory: string): Promise<void> {
  try {
    await makeWithParents(directory);
    if (isPrivate(await lstat(directory))) return;
  } catch (error) {
    throw fileError(error, "create the directory", directory);
  }
  throw notPrivate(directory);
}

/** Fails as making it would. Makes nothing: where it is missing, the nearest directory above must take new ones. */
async function checkPrivateDirectory(directory: string): Promise<void> {
  try {
    if (await exists(directory)) {
      if (!isPrivate(await lstat(directory))) throw notPrivate(directory);
      await access(directory, constants.R_OK | constants.W_OK | constants.X_OK);
      return;
    }
    let above = path.dirname(directory);
    while (!(await exists(above))) above = path.dirname(above);
    if (!(await stat(above)).isDirectory()) {
      throw new FleeceError("PATH_NOT_FOUND", `Cannot create ${directory}: ${above} is not a directory`, {
        facts: { path: above },
      });
    }
    await access(above, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw fileError(error, "create the directory", directory);
  }
}

function isPrivate(found: Stats): boolean {
  return found.isDirectory() && (found.mode & 0o022) === 0;
}

function notPrivate(directory: string): FleeceError {
  return new FleeceError(
    "PERMISSION_DENIED",
    `Expected ${directory} to be a directory that only its owner may write to`,
    { facts: { path: directory } },
  );
}

/** Not mkdir's own `recursive`: on a file system that refuses with ENOENT, like /proc, Node 20 retries it for ever. */
async function makeWithParents(directory: string): Promise<void> {
  try {
    await makeDirectory(directory);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw error;
    const parent = path.dirname(directory);
    if (!(await exists(parent))) await makeWithParents(parent);
    // Somebody else may have made the parent meanwhile.
    await makeDirectory(directory);
  }
}

async function makeDirectory(directory: string): Promise<void> {
  try {
    await mkdir(directory, { mode: 0o700 });
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw error;
  }
}

async function exists(directory: string): Promise<boolean> {
  return stat(directory).then(
    () => true,
    () => false,
  );
}

/** Undefined if it has just ended: a restore works without the domain's lock. */
async function readRecord(file: string): Promise<OperationRecord | undefined> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw fileError(error, "read the journal", file);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw unreadable(file, "it is not JSON", cause);
  }
  if (typeof value !== "object" || value === null || !("schemaVersion" in value)) {
    throw unreadable(file, "it has no schemaVersion");
  }
  if (value.schemaVersion !== 1) throw unreadable(file, "a newer version of fleece wrote it");
  return value as OperationRecord;
}

function unreadable(file: string, why: string, cause?: unknown): FleeceError {
  return new FleeceError("INTERNAL", `Cannot use the journal ${file}: ${why}`, {
    cause,
    facts: { path: file },
  });
}

async function entries(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return [];
    throw fileError(error, "list", directory);
  }
}
