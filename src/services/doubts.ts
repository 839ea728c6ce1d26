import type { BackupEntry } from "../model/backup.js";
import type { Doubts } from "../model/doubts.js";
import type { ServiceContext } from "./context.js";
import { lastVerification } from "./verifications.js";

/** What is known against these backups of a domain. */
export async function readDoubts(
  { store }: Pick<ServiceContext, "store">,
  entries: readonly BackupEntry[],
): Promise<Doubts> {
  const noted = new Set(await store.notes("verifications"));
  const backups = new Map<string, string>();
  for (const { id } of entries.filter((entry) => noted.has(entry.id))) {
    const damage = (await lastVerification(store, id))?.damage;
    if (damage !== undefined) backups.set(id, damage);
  }
  return { backups };
}
