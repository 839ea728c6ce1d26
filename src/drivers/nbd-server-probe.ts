import { listExports } from "nbd-client-ts";

/** A server that is there answers at once. */
const PROBE_TIMEOUT_MS = 5_000;

/**
 * Whether an NBD server listens on a Unix socket; false for a path that does not exist or was left by a dead process. It
 * negotiates and says goodbye: QEMU's main loop may wait long for a client that connected and has not negotiated.
 */
export async function nbdServerAnswers(socketPath: string): Promise<boolean> {
  try {
    await listExports({ socketPath, connectTimeoutMs: PROBE_TIMEOUT_MS });
    return true;
  } catch {
    return false;
  }
}
