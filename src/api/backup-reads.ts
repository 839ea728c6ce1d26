import { isAbsolute } from "node:path";
import type { IntactEntry } from "../model/backup.js";
import type { ExportAddress } from "../model/snapshot-plan.js";
import { parseTimeText } from "../model/time-text.js";
import { findBackupAt, findReadable } from "../services/backup-catalog.js";
import type { ReadOptions } from "../services/backup-read.js";
import type { RestoredDisk } from "../services/restore-outputs.js";
import { restoreBackup, serveBackup } from "../services/backup-read.js";
import type { ServiceContext } from "../services/context.js";
import type { ImageFormat } from "../model/snapshot-plan.js";
import { verifyAndRemember } from "../services/verifications.js";
import { FleeceError } from "../shared/errors.js";
import { machineFileMessages } from "./backups.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import { formatName } from "./domains.js";
import type { Restoration, ServedBackup, Verification } from "./messages.js";
import { nbdUri } from "./nbd-uri.js";
import { timestampFromText } from "./timestamp.js";
import { endOrAbort } from "./until.js";

const KINDS = { file: "FILE", "block-device": "BLOCK_DEVICE", nbd: "NBD" } as const;
const FORMATS_BY_NAME: ReadonlyMap<string, ImageFormat | undefined> = new Map([
  ["FORMAT_UNSPECIFIED", undefined],
  ["QCOW2", "qcow2"],
  ["RAW", "raw"],
]);

export async function verifyBackupHandler(
  context: ServiceContext,
  { id, disks, repository }: CallRequest<"Backups.Verify">,
  options: CallOptions,
): Promise<Verification> {
  const verified = await verifyAndRemember(context, id, { repository, ...readOptions(disks, options) });
  return {
    backup: id,
    disks: verified.map(({ target, checkedBytes }) => ({ target, checkedBytes })),
  };
}

export async function restoreBackupHandler(
  context: ServiceContext,
  request: CallRequest<"Backups.Restore">,
  options: CallOptions,
): Promise<Restoration> {
  const { disks, places, format: formatOrNone } = request;
  const directory = request.directory === "" && places.length > 0 ? undefined : request.directory;
  if (directory !== undefined) requireAbsolute("directory", directory);
  if (!FORMATS_BY_NAME.has(formatOrNone)) {
    throw new FleeceError("INVALID_ARGUMENT", `Expected QCOW2 or RAW as \`format\`, got ${formatOrNone}`, {
      facts: { field: "format" },
    });
  }
  const format = FORMATS_BY_NAME.get(formatOrNone);
  const { beforeEffect, promised } = options;
  if (promised?.proof !== undefined && promised.proof !== "") {
    const answer = promised.answer as Restoration;
    if ((await identityOf(context, answer)) === promised.proof) return answer;
  }
  const { id, domain, repository, manifest } = await wantedBackup(context, request);
  const message = (restored: readonly RestoredDisk[]): Restoration => ({
    backup: id,
    ...{ domain, repository, time: timestampFromText(manifest.time) },
    directory: directory ?? "",
    machineFiles: directory === undefined ? [] : machineFileMessages(manifest),
    disks: restored.map((disk) => ({
      target: disk.target,
      file: disk.file,
      kind: KINDS[disk.kind],
      format: formatName(disk.format),
      sizeBytes: disk.sizeBytes,
    })),
  });
  const restored = await restoreBackup(context, {
    ...{ id, repository, directory, places, format },
    ...(beforeEffect === undefined
      ? {}
      : { onComplete: (found, identity) => beforeEffect(message(found), identity) }),
    ...readOptions(disks, options),
  });
  return message(restored);
}

/** Of what an earlier call answered with: as `RestoreOutputs.identity` tells it, of what has these names now. */
async function identityOf({ outputs }: ServiceContext, { directory, disks }: Restoration): Promise<string> {
  const isWithin = (file: string): boolean => directory !== "" && file.startsWith(`${directory}/`);
  const files = disks.filter(({ kind, file }) => kind === "FILE" && !isWithin(file));
  const paths = [directory, ...files.map(({ file }) => file)].filter((path) => path !== "");
  return (await Promise.all(paths.map((path) => outputs.identityOf(path)))).join(" ");
}

/** By its id, or the newest of a domain. */
export async function wantedBackup(
  context: ServiceContext,
  {
    id,
    domain,
    at,
    repository,
  }: Partial<Pick<CallRequest<"Backups.Restore">, "id" | "domain" | "at" | "repository">>,
): Promise<IntactEntry> {
  if (domain !== undefined && (id ?? "") === "") {
    const atMs = at === undefined ? undefined : parseTimeText(at);
    return findBackupAt(context, { domain, atMs, repository });
  }
  if (domain === undefined && at === undefined) {
    return (await findReadable(context, id ?? "", repository)).entry;
  }
  const message =
    "Expected either the id of a backup, or a domain and perhaps a moment, and perhaps a repository";
  throw new FleeceError("INVALID_ARGUMENT", message, {
    facts: { field: domain === undefined ? "domain" : "id" },
  });
}

/** Ends when it is cancelled. Fails with QEMU_FAILED if the NBD server ends by itself. */
export async function serveBackupHandler(
  context: ServiceContext,
  { id, disks, socketPath, repository }: CallRequest<"Backups.Serve">,
  { signal, onServed }: CallOptions,
): Promise<undefined> {
  if (socketPath !== undefined) requireAbsolute("socketPath", socketPath);
  const { backup } = await serveBackup(context, id, {
    ...{ repository, ...readOptions(disks, { signal }) },
    ...(socketPath === undefined ? {} : { socketPath }),
  });
  try {
    onServed?.({ backup: id, disks: backup.addresses.map(servedDisk) });
    const reason = await endOrAbort(backup.ended, signal);
    if (reason === undefined) return undefined;
    throw new FleeceError("QEMU_FAILED", `The NBD server of backup ${id} ended by itself: ${reason}`, {
      facts: { backup: id },
    });
  } finally {
    await backup.close();
  }
}

/** The agent's working directory is nobody's business. */
function requireAbsolute(field: string, path: string): void {
  if (isAbsolute(path)) return;
  throw new FleeceError("INVALID_ARGUMENT", `Expected an absolute path for ${field}, got ${path}`, {
    facts: { field },
  });
}

function servedDisk({
  target,
  exportName,
  socketPath,
  sizeBytes,
}: ExportAddress): ServedBackup["disks"][number] {
  const uri = nbdUri(exportName, socketPath);
  return { target, exportName, uri, sizeBytes };
}

function readOptions(disks: readonly string[], { signal, onProgress }: CallOptions): ReadOptions {
  return {
    ...(disks.length === 0 ? {} : { disks }),
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress: (progress) => onProgress({ disk: progress }) }),
  };
}
