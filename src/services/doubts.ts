import type { BackupEntry } from "../model/backup.js";
import type { Doubts, MissedChange } from "../model/doubts.js";
import type { StateStore } from "../ports/state-store.js";
import type { ServiceContext } from "./context.js";
import { lastVerification, verificationNotes } from "./verifications.js";

/** What is known against these backups of a domain. */
export async function readDoubts(
  { store }: Pick<ServiceContext, "store">,
  domain: string,
  entries: readonly BackupEntry[],
): Promise<Doubts> {
  const noted = new Set(await store.notes("verifications"));
  const backups = new Map<string, string>();
  for (const entry of entries.filter((each) => verificationNotes(each).some((name) => noted.has(name)))) {
    const damage = (await lastVerification(store, entry))?.damage;
    if (damage !== undefined) backups.set(entry.id, damage);
  }
  return { backups, disks: await missedChanges(store, domain) };
}

/** Durable: from now on the disk is compared with backups of this moment and before. */
export async function noteMissedChange(
  { store }: Pick<ServiceContext, "store">,
  domain: string,
  target: string,
  missed: MissedChange,
): Promise<void> {
  const known = await missedChanges(store, domain);
  const disks = Object.fromEntries([...known, [target, missed]]);
  await store.writeNote("missed-changes", domain, { schemaVersion: 1, disks } satisfies MissedNote);
}

interface MissedNote {
  readonly schemaVersion: 1;
  /** The newest of each disk. */
  readonly disks: Readonly<Record<string, MissedChange>>;
}

async function missedChanges(store: StateStore, domain: string): Promise<ReadonlyMap<string, MissedChange>> {
  const note = await store.readNote("missed-changes", domain);
  return new Map(isMissedNote(note) ? Object.entries(note.disks) : []);
}

function isMissedNote(note: unknown): note is MissedNote {
  return typeof note === "object" && note !== null && "schemaVersion" in note && note.schemaVersion === 1;
}
