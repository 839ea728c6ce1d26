import type { UndoLog } from "./block-driver.js";

/** A directory, or a single file, that appears under its name only when all of it is there. */
export interface OutputDirectory {
  /** Where to write: beside the final place, so that the rename stays within one file system. */
  readonly temporaryPath: string;
  /** What tells this directory (or a file in it) from any other on the host, under whatever name. */
  identity(file?: string): Promise<string>;
  /** Gives it its final name, durably; or gives that to a file in it, and removes the rest. */
  publish(file?: string): Promise<void>;
  /** Removes it. Idempotent; does nothing after `publish`. */
  discard(): Promise<void>;
}

export interface OutputDirectories {
  /** The `identity` of what is at `path`, or undefined if nothing is. */
  identityOf(path: string): Promise<string | undefined>;
  /** Fails with ALREADY_EXISTS if `path` exists, PATH_NOT_FOUND if its parent does not; the undo is registered first. */
  begin(path: string, undo: UndoLog): Promise<OutputDirectory>;
}
