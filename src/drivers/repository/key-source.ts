import { constants, open } from "node:fs/promises";
import { errorMessage, fileError, FleeceError, isFleeceError } from "../../shared/errors.js";
import { programs } from "../programs.js";
import { RepositoryKey } from "./repository-key.js";

/** Where the key of a repository comes from: exactly one of them. */
export interface KeyPlace {
  readonly keyFile?: string | undefined;
  /** A program and its arguments. */
  readonly keyCommand?: readonly string[] | undefined;
}

const OTHERS = 0o077;
const MAX_FILE_BYTES = 64 * 1024;
/** Somebody may have to be asked for it over a network. */
const COMMAND_TIMEOUT_MS = 30_000;

/** QEMU takes it as text. White space around it, such as the end of the line, is none of it. */
const KEY = /^[\x21-\x7e]([\x20-\x7e]{30,1022})[\x21-\x7e]$/;

/** Fails with KEY_UNAVAILABLE. No message has anything that was read or printed. */
export async function readKey(
  { keyFile, keyCommand = [] }: KeyPlace,
  signal?: AbortSignal,
): Promise<RepositoryKey> {
  signal?.throwIfAborted();
  const text = keyFile === undefined ? await runCommand(keyCommand, signal) : await readKeyFile(keyFile);
  const source = keyFile ?? `what ${keyCommand[0] ?? ""} printed`;
  const key = text.trim();
  if (KEY.test(key)) return new RepositoryKey(key);
  throw unavailable(
    `Expected a key of one line with 32 to 1024 printable ASCII characters, got ${key.length} characters from ${source}; \`head -c 32 /dev/urandom | base64\` makes one`,
  );
}

async function readKeyFile(path: string): Promise<string> {
  try {
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const found = await file.stat();
    if (!found.isFile()) throw unavailable(`Expected a key file, got something else at ${path}`);
    const { mode, size } = found;
    if ((mode & OTHERS) !== 0) {
      const octal = (mode & 0o777).toString(8).padStart(4, "0");
      throw unavailable(
        `Expected the key file ${path} to be its owner's alone (mode 0600), got mode ${octal}`,
      );
    }
    if (size > MAX_FILE_BYTES) throw unavailable(`Expected a key file, got ${size} bytes in ${path}`);
    return await file.readFile("latin1");
  } catch (error) {
    if (isFleeceError(error, "KEY_UNAVAILABLE")) throw error;
    throw unavailable(errorMessage(fileError(error, "read the key file", path)), error);
  }
}

async function runCommand(command: readonly string[], signal: AbortSignal | undefined): Promise<string> {
  const deadline = AbortSignal.timeout(COMMAND_TIMEOUT_MS);
  const stop = signal === undefined ? deadline : AbortSignal.any([signal, deadline]);
  const { failure, output } = await programs.run({ command, keeps: "stdout" }, stop);
  signal?.throwIfAborted();
  if (failure === undefined) return output;
  throw unavailable(`Cannot get the key of the repository from ${command[0] ?? ""}: ${failure}`);
}

function unavailable(message: string, cause?: unknown): FleeceError {
  return new FleeceError("KEY_UNAVAILABLE", message, { cause });
}
