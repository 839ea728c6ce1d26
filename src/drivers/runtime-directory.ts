import { randomBytes } from "node:crypto";
import { chmod, lstat, mkdir, readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { errnoOf, fileError, FleeceError } from "../shared/errors.js";
import { endDaemon } from "./end-daemon.js";
import { isOwnerAlive, processOwner } from "./process-owner.js";

export { isOwnerAlive, processOwner, type ProcessOwner } from "./process-owner.js";

/** `sun_path` of sockaddr_un has 108 bytes including the final zero: unix(7). */
const MAX_SOCKET_PATH_BYTES = 107;

/** Where the directories for sockets are, unless configured. Short, because socket paths must be. */
export function defaultRuntimeRoot(): string {
  const uid = process.geteuid?.() ?? 0;
  if (uid === 0) return "/run/fleece";
  const userDirectory = process.env["XDG_RUNTIME_DIR"];
  return userDirectory?.startsWith("/") === true ? join(userDirectory, "fleece") : `/tmp/fleece-${uid}`;
}

/** A new path for a directory that is of no use once this process has ended. */
export function processDirectoryPath(root: string = defaultRuntimeRoot()): string {
  const { pid, startTicks } = processOwner();
  return join(root, `p-${pid}-${startTicks}-${randomBytes(4).toString("hex")}`);
}

/** The path of a directory that outlives this process and is found again by its name. */
export function detachedDirectoryPath(name: string, root: string = defaultRuntimeRoot()): string {
  const path = join(root, `d-${name}`);
  if (dirname(path) !== join(root)) {
    throw new FleeceError(
      "INTERNAL",
      `Expected a plain name for a runtime directory, got ${JSON.stringify(name)}`,
    );
  }
  return path;
}

/**
 * Makes a directory (0700) that nobody else can read or swap, and the root above it if that is missing.
 * Fails with ALREADY_EXISTS, or with PERMISSION_DENIED if the root is a link or belongs to somebody else.
 */
export async function makeRuntimeDirectory(path: string): Promise<void> {
  const root = dirname(path);
  await makeRuntimeRoot(root);
  try {
    await mkdir(path, { mode: 0o700 });
    // An umask can only have taken rights away from us.
    await chmod(path, 0o700);
  } catch (error) {
    throw fileError(error, "create the directory", path);
  }
}

/** Makes the directory above them, if it is missing. Fails with PERMISSION_DENIED as `makeRuntimeDirectory` does. */
export async function makeRuntimeRoot(root: string): Promise<void> {
  try {
    await mkdir(root, { mode: 0o700 });
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw fileError(error, "create the directory", root);
  }
  const found = await lstat(root);
  const obstacle = !found.isDirectory()
    ? "it is not a directory itself"
    : found.uid !== process.geteuid?.()
      ? `it belongs to user ${found.uid}`
      : (found.mode & 0o022) !== 0
        ? "others may write to it"
        : undefined;
  if (obstacle === undefined) return;
  throw new FleeceError("PERMISSION_DENIED", `Cannot put sockets into ${root}: ${obstacle}`, {
    facts: { path: root },
  });
}

/** The path of a socket; INVALID_ARGUMENT if the system cannot take one of that length. */
export function checkSocketPath(path: string): string {
  const length = Buffer.byteLength(path);
  if (length <= MAX_SOCKET_PATH_BYTES) return path;
  throw new FleeceError(
    "INVALID_ARGUMENT",
    `Expected a socket path of at most ${MAX_SOCKET_PATH_BYTES} bytes, got ${length}: ${path}`,
    { facts: { path } },
  );
}

/**
 * Removes directories whose process has ended, however it ended, and any daemon left in them (one killed together
 * with its parent before it could ask the kernel for that leaves none). Returns the paths. Idempotent.
 */
export async function sweepRuntimeDirectories(root: string = defaultRuntimeRoot()): Promise<string[]> {
  const removed: string[] = [];
  for (const name of await entriesOf(root)) {
    const [, pid, startTicks] = /^p-(\d+)-(\d+)-[0-9a-f]+$/.exec(name) ?? [];
    if (pid === undefined || startTicks === undefined) continue;
    if (isOwnerAlive({ pid: Number(pid), startTicks: Number(startTicks) })) continue;
    await endDaemon(join(root, name));
    removed.push(join(root, name));
  }
  return removed;
}

async function entriesOf(root: string): Promise<string[]> {
  try {
    return await readdir(root);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return [];
    throw fileError(error, "list the directory", root);
  }
}
