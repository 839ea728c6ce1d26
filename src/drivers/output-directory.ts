import { lstat, mkdir, rename, rm } from "node:fs/promises";
import path from "node:path";
import type { UndoLog } from "../ports/block-driver.js";
import type { OutputDirectories, OutputDirectory } from "../ports/output-directory.js";
import { errnoOf, fileError, FleeceError } from "../shared/errors.js";
import { randomId } from "../shared/ids.js";
import { syncDirectory } from "./durable-files.js";

export const outputDirectories: OutputDirectories = {
  identityOf,

  async begin(finalPath: string, undo: UndoLog): Promise<OutputDirectory> {
    const wanted = path.resolve(finalPath);
    await checkAbsent(wanted);
    const temporaryPath = `${wanted}.partial-${randomId(6)}`;
    await undo.register({ kind: "directory", path: temporaryPath });
    try {
      await mkdir(temporaryPath, { mode: 0o700 });
    } catch (error) {
      throw fileError(error, "create the directory", wanted);
    }
    return {
      temporaryPath,
      async identity(file = "") {
        return (await identityOf(path.join(temporaryPath, file))) ?? "";
      },
      async publish(file) {
        await syncDirectory(temporaryPath);
        await checkAbsent(wanted);
        await rename(path.join(temporaryPath, file ?? ""), wanted);
        await syncDirectory(path.dirname(wanted));
        if (file !== undefined) await rm(temporaryPath, { recursive: true, force: true });
      },
      discard: () => rm(temporaryPath, { recursive: true, force: true }),
    };
  },
};

/** Numbers of inodes are used again, times of birth are not. */
async function identityOf(wanted: string): Promise<string | undefined> {
  try {
    const { dev, ino, birthtimeNs } = await lstat(wanted, { bigint: true });
    return `${dev}:${ino}:${birthtimeNs}`;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw fileError(error, "look at", wanted);
  }
}

async function checkAbsent(wanted: string): Promise<void> {
  try {
    await lstat(wanted);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return;
    throw fileError(error, "look at", wanted);
  }
  throw new FleeceError("ALREADY_EXISTS", `Expected a path where nothing is yet, found ${wanted}`, {
    facts: { path: wanted },
  });
}
