import type { ServiceContext } from "../context.js";
import { pruneDomain } from "../prune.js";
import type { RunStep } from "./run-step.js";

/** Lets go what the retention policy does not keep any more, in the repository that has just got a backup. */
export const pruneStep: RunStep = {
  name: "prune",
  perform: (context, { entry, signal }) => pruneAfter(context, entry.domain, entry.repository, signal),
};

/** Resolves with what somebody should read. */
export async function pruneAfter(
  context: ServiceContext,
  domain: string,
  repository: string,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const prunings = await pruneDomain(context, domain, { repository, signal });
  return prunings.flatMap(({ notes, backups }) => [
    ...notes,
    ...backups.flatMap(({ outcome, note }) => (outcome === "skipped" && note !== undefined ? [note] : [])),
  ]);
}
