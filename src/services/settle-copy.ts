import type { CopyJournal } from "../model/operation.js";
import type { BackupRepository } from "../ports/repository.js";
import { isFleeceError } from "../shared/errors.js";
import type { Operation } from "./operation.js";

/**
 * Removes what a killed copy has left in the second repository. Not by the journal's path: a later copy of the same backup has
 * the same, and may be under way. Whoever takes the repository's lock removes the drafts of those that are dead.
 */
export async function settleCopy(
  repositories: ReadonlyMap<string, BackupRepository>,
  operation: Operation,
  { repository }: CopyJournal,
): Promise<void> {
  try {
    const lock = await repositories.get(repository)?.lock(operation.record.domain);
    await lock?.release();
  } catch (error) {
    // Whoever holds it has done it.
    if (!isFleeceError(error, "REPOSITORY_BUSY")) throw error;
  }
  await operation.end();
}
