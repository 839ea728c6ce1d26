import type { BackupJournal } from "../model/operation.js";
import type { BackupRepository } from "../ports/repository.js";
import type { Operation } from "./operation.js";

/**
 * A backup that came to its end between getting its name and tidying up (killed, or failed in between) is whole: the
 * checkpoint that was made with it counts.
 */
export async function keepCheckpointIfPublished(
  repositories: ReadonlyMap<string, BackupRepository>,
  operation: Operation,
  { repository, backupId }: BackupJournal,
): Promise<void> {
  const found = await repositories.get(repository)?.has(operation.record.domain, backupId);
  if (found === true) await operation.keepCheckpoint();
}
