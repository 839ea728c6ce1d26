import type { UndoLog } from "./block-driver.js";

/** A directory that appears under its name only when everything in it is there. */
export interface OutputDirectory {
  /** Where to write: beside the final place, so that the rename stays within one file system. */
  readonly temporaryPath: string;
  /** What tells this directory from any other on the host, under whatever name. */
  identity(): Promise<string>;
  /** Gives it its final name, durably. */
  publish(): Promise<void>;
  /** Removes it. Idempotent; does nothing after `publish`. */
  discard(): Promise<void>;
}

export interface OutputDirectories {
  /** The `identity` of what is at `path`, or undefined if nothing is. */
  identityOf(path: string): Promise<string | undefined>;
  /** Fails with ALREADY_EXISTS if `path` exists, PATH_NOT_FOUND if its parent does not; the undo is registered first. */
  begin(path: string, undo: UndoLog): Promise<OutputDirectory>;
}
