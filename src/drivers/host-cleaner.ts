import type { BigIntStats } from "node:fs";
import { lstat, rm } from "node:fs/promises";
import type { HostEntry } from "../model/undo.js";
import type { HostCleaner } from "../ports/state-store.js";
import { errnoOf, fileError } from "../shared/errors.js";
import { removeEmptyDirectory, removeFile } from "./durable-files.js";
import { endDaemon } from "./end-daemon.js";
import { lvmVolumes } from "./lvm/volumes.js";
import { undoStart } from "./machine/launcher.js";
import { removeExport } from "./node-exports.js";
import { withQmpErrors } from "./qmp-errors.js";
import { StorageDaemon } from "./storage-daemon.js";

/** Undoes what an operation left on the host: files, directories and storage daemons. */
export class QemuHostCleaner implements HostCleaner {
  async undo(entry: HostEntry): Promise<void> {
    switch (entry.kind) {
      case "file":
        await removeFile(entry.path);
        return;
      case "linked-file":
        return removeLinkedFile(entry.path, entry.link);
      case "volume":
        return lvmVolumes.remove(entry.volume);
      case "directory":
        return rm(entry.path, { recursive: true, force: true });
      case "empty-directory":
        await removeEmptyDirectory(entry.path);
        return;
      case "daemon":
        return endDaemon(entry.directory);
      case "daemon-export":
        return endDaemonExport(entry.directory, entry.id);
      case "machine":
        return undoStart(entry);
    }
  }
}

/** The second name goes first: without the file nobody could tell any more whose that name is. */
async function removeLinkedFile(path: string, link: string): Promise<void> {
  const [file, linked] = [await lookAt(path), await lookAt(link)];
  if (file !== undefined && linked?.ino === file.ino && linked.dev === file.dev) await removeFile(link);
  await removeFile(path);
}

async function lookAt(path: string): Promise<BigIntStats | undefined> {
  try {
    return await lstat(path, { bigint: true });
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw fileError(error, "look at", path);
  }
}

async function endDaemonExport(directory: string, id: string): Promise<void> {
  const daemon = await StorageDaemon.attach(directory);
  if (daemon === undefined) return;
  try {
    await withQmpErrors("The storage daemon of a block snapshot", () => removeExport(daemon.qmp, id));
  } finally {
    await daemon.detach();
  }
}
