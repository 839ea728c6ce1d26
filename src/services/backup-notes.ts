import type { BackupEntry } from "../model/backup.js";
import type { NoteKind, StateStore } from "../ports/state-store.js";
import { listBackups } from "./backup-catalog.js";
import type { ServiceContext } from "./context.js";

/** What every note of a backup has. */
export interface BackupNote {
  readonly schemaVersion: 1;
  readonly timeMs: number;
}

/** Copies of a backup in other repositories have notes of their own. Our ids have no dot. */
export function backupNoteName({ repository, id }: Pick<BackupEntry, "repository" | "id">): string {
  return `${repository}.${id}`;
}

/** The first of these that can be read. `N` is what `writeBackupNote` writes for the kind. */
export async function readBackupNote<N extends BackupNote>(
  store: StateStore,
  kind: NoteKind,
  names: readonly string[],
): Promise<N | undefined> {
  for (const name of names) {
    const note = await store.readNote(kind, name);
    if (isOurs(note)) return note as N;
  }
  return undefined;
}

/** Also removes the notes of backups that are gone: those that are none of `namesOf` a listed one. */
export async function writeBackupNote(
  context: ServiceContext,
  kind: NoteKind,
  backup: BackupEntry,
  note: BackupNote,
  namesOf: (backup: BackupEntry) => readonly string[],
): Promise<void> {
  const { store } = context;
  await store.writeNote(kind, backupNoteName(backup), note);
  const listed = new Set((await listBackups(context)).flatMap(namesOf));
  for (const name of await store.notes(kind)) {
    if (!listed.has(name)) await store.removeNote(kind, name);
  }
}

function isOurs(note: unknown): note is BackupNote {
  return typeof note === "object" && note !== null && "schemaVersion" in note && note.schemaVersion === 1;
}
