import { copyBackups } from "../backup-copy.js";
import { pruneAfter } from "./prune-step.js";
import type { RunStep } from "./run-step.js";

/**
 * Copies what the second repository of the job lacks of the domain's backups, and lets go there what the retention policy does not
 * keep. What fails is made up for by the next run: the new backup is there. But damage of an original fails the run.
 */
export const copyStep: RunStep = {
  name: "copy",
  async perform(context, { job, entry, signal, onCopied }) {
    const { copyTo } = job;
    if (copyTo === undefined) return [];
    const { domain, repository } = entry;
    const wish = { kind: "newer" } as const;
    const { notes } = await copyBackups(context, {
      ...{ domain, from: repository, to: copyTo, wish, signal },
      onCopied: ({ id }) => onCopied(id),
    });
    return [...notes, ...(await pruneAfter(context, domain, copyTo, signal))];
  },
};
