import { protectBackup } from "../services/backup-catalog.js";
import type { ServiceContext } from "../services/context.js";
import { type PrunedBackup, pruneDomains, type Pruning } from "../services/prune.js";
import { backupMessage } from "./backups.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type { Backup, PruneReport } from "./messages.js";
import { timestampFromText } from "./timestamp.js";

const ACTIONS = {
  keep: "KEEP",
  delete: "DELETE",
  merge: "MERGE",
  wait: "WAIT",
  damaged: "DAMAGED",
} as const;
const OUTCOMES = { kept: "KEPT", planned: "PLANNED", done: "DONE", skipped: "SKIPPED" } as const;

export async function protectBackupHandler(
  context: ServiceContext,
  request: CallRequest<"Backups.Protect">,
): Promise<Backup> {
  return backupMessage(await protectBackup(context, request.id, request.protected, request.repository));
}

export async function pruneBackupsHandler(
  context: ServiceContext,
  { domain, repository, dryRun }: CallRequest<"Backups.Prune">,
  { signal, onProgress }: CallOptions,
): Promise<PruneReport> {
  const prunings = await pruneDomains(context, domain, {
    ...{ repository, dryRun, signal },
    onProgress: ({ target, doneBytes, totalBytes }) =>
      onProgress?.({ disk: { target, positionBytes: doneBytes, sizeBytes: totalBytes } }),
  });
  return { domains: prunings.map(pruningMessage), dryRun };
}

function pruningMessage({
  domain,
  repository,
  backups,
  checkpoints,
  notes,
}: Pruning): PruneReport["domains"][number] {
  return { domain, repository, backups: backups.map(prunedMessage), checkpoints, notes };
}

function prunedMessage({
  entry,
  action,
  reasons,
  into,
  outcome,
  note,
}: PrunedBackup): PruneReport["domains"][number]["backups"][number] {
  const { id, manifest } = entry;
  const time = manifest === undefined ? null : timestampFromText(manifest.time);
  return { id, time, action: ACTIONS[action], reasons, into, outcome: OUTCOMES[outcome], note };
}
