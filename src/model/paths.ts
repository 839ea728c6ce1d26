import { posix } from "node:path";
import { FleeceError } from "../shared/errors.js";

/** PATH_MAX of Linux, which counts the NUL at the end. */
const MAX_BYTES = 4095;

/** No path that people write has them: logs and terminals obey control characters, and half a character has no bytes. */
const STRANGE = /[\p{Cc}\p{Cs}]/u;

/**
 * Returns the path of a file that a request names if it may be used, else throws INVALID_ARGUMENT. It is absolute, so that
 * the agent's working directory does not matter and QEMU takes it for no protocol, and has only one spelling.
 */
export function checkFilePath(what: string, path: string): string {
  const plain = posix.isAbsolute(path) && posix.normalize(path) === path && !path.endsWith("/");
  if (plain && !STRANGE.test(path) && Buffer.byteLength(path) <= MAX_BYTES) return path;
  const shown = path.length > 100 ? `${path.slice(0, 100)}… (${path.length} characters)` : path;
  throw new FleeceError(
    "INVALID_ARGUMENT",
    `Expected an absolute path of ${what}, without . or .. or control characters, got ${JSON.stringify(shown)}`,
  );
}
