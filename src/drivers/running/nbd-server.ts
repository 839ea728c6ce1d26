import { rm } from "node:fs/promises";
import path from "node:path";
import type { QmpSession } from "../../qmp/index.js";
import { isQmpError } from "../../qmp/index.js";
import { FleeceError, isFleeceError } from "../../shared/errors.js";
import { nbdServerAnswers } from "../nbd-server-probe.js";
import { makeRuntimeDirectory } from "../runtime-directory.js";

/**
 * The NBD server of a domain's QEMU. There is one per process, and QEMU does not tell where it listens: it is ours if it
 * answers where ours would. It starts with the first export and stops with the last.
 */

/** Starts it unless it runs; the caller registers its undo. Fails with NBD_SERVER_BUSY when another program's does. */
export async function startNbdServer(qmp: QmpSession, socketPath: string, domain: string): Promise<void> {
  try {
    await makeRuntimeDirectory(path.dirname(socketPath));
  } catch (error) {
    if (!isFleeceError(error, "ALREADY_EXISTS")) throw error;
  }
  try {
    await qmp.execute("nbd-server-start", { addr: { type: "unix", data: { path: socketPath } } });
  } catch (error) {
    if (!isQmpError(error) || error.qemuText !== "NBD server already running") throw error;
    if (await nbdServerAnswers(socketPath)) return;
    throw new FleeceError(
      "NBD_SERVER_BUSY",
      `QEMU of domain ${domain} already runs an NBD server that another program started, and one process has only one`,
      { cause: error },
    );
  }
}

/** Stops it if it is ours and offers nothing any more, and removes its directory. Idempotent. */
export async function stopNbdServer(qmp: QmpSession, socketPath: string): Promise<void> {
  if (await nbdServerAnswers(socketPath)) {
    const exports = await qmp.execute("query-block-exports");
    if (exports.some(({ type }) => type === "nbd")) return;
    await qmp.execute("nbd-server-stop");
  }
  await rm(path.dirname(socketPath), { recursive: true, force: true });
}
