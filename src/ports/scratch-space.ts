/** The directory where scratch images are kept, and what they take there. */
export interface ScratchSpace {
  /** This much of its file system must stay free. */
  readonly reserveBytes: number;
  /**
   * Fails with PATH_NOT_FOUND or PERMISSION_DENIED when no scratch images can be made, and with NO_SPACE when less than
   * the reserve is free.
   */
  check(): Promise<void>;
  /**
   * Whether a scratch image (or a socket) may be made as this file, outside the directory: an absolute path. Fails with ALREADY_EXISTS,
   * with PATH_NOT_FOUND for a missing directory, with INVALID_ARGUMENT if a link leads there, and with PERMISSION_DENIED if
   * others could put another file in its place.
   */
  checkFile(path: string): Promise<void>;
  /** What is free on its file system for us. */
  freeBytes(): Promise<number>;
  /** What these files take on it together, holes left out; those that do not exist take nothing. */
  usedBytes(files: readonly string[]): Promise<number>;
}
