import { pruneDomain } from "../prune.js";
import type { RunStep } from "./run-step.js";

/** Lets go what the retention policy does not keep any more, in the repository that has just got a backup. */
export const pruneStep: RunStep = {
  name: "prune",
  async perform(context, { entry, signal }) {
    const prunings = await pruneDomain(context, entry.domain, { repository: entry.repository, signal });
    return prunings.flatMap(({ notes, backups }) => [
      ...notes,
      ...backups.flatMap(({ outcome, note }) => (outcome === "skipped" && note !== undefined ? [note] : [])),
    ]);
  },
};
