import { copyBackups } from "../services/backup-copy.js";
import type { ServiceContext } from "../services/context.js";
import { FleeceError } from "../shared/errors.js";
import { backupMessage, progressMessage } from "./backups.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type { CopyReport } from "./messages.js";

export async function copyBackupsHandler(
  context: ServiceContext,
  { domain, to, repository: from, ids, latest }: CallRequest<"Backups.Copy">,
  { signal, onProgress }: CallOptions,
): Promise<CopyReport> {
  if (latest && ids.length > 0) {
    const message = "Expected either ids or the latest, got both";
    throw new FleeceError("INVALID_ARGUMENT", message, { facts: { field: "latest" } });
  }
  const copying = await copyBackups(context, {
    ...{ domain, from, to, signal },
    wish: ids.length > 0 ? { kind: "ids", ids } : { kind: latest ? "latest" : "newer" },
    ...(onProgress === undefined ? {} : { onProgress: (progress) => onProgress(progressMessage(progress)) }),
  });
  const { from: repository, copies, notes } = copying;
  return { domain, repository, to, backups: copies.map(backupMessage), notes: [...notes] };
}
