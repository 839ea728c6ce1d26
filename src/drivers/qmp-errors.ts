import { isQmpError, type QmpErrorCode } from "../qmp/index.js";
import { FleeceError } from "../shared/errors.js";

/** QEMU's own answer, final for that command; after any other error nothing is known of what QEMU did. */
const REFUSALS: ReadonlySet<QmpErrorCode> = new Set([
  "QMP_COMMAND_FAILED",
  "QMP_JOB_FAILED",
  "QMP_JOB_LOST",
  "QMP_ARGUMENT",
]);

/**
 * Gives an error of a QMP session the code that says what may be done next. An aborted call throws what its signal was
 * aborted with, if that has a code.
 */
export function mapQmpError(error: unknown, peer: string): unknown {
  if (!isQmpError(error)) return error;
  if (error.code === "QMP_ABORTED") {
    if (error.cause instanceof FleeceError) return error.cause;
    return new FleeceError("INTERRUPTED", "Cancelled", { cause: error });
  }
  const message = `${peer}: ${error.message}`;
  if (!REFUSALS.has(error.code)) {
    const facts = error.code === "QMP_NO_GREETING" ? { monitorInUse: true } : {};
    return new FleeceError("DOMAIN_UNREACHABLE", message, { cause: error, facts });
  }
  const code = /No space left on device/.test(error.message) ? "NO_SPACE" : "QEMU_FAILED";
  return new FleeceError(code, message, { cause: error });
}

export async function withQmpErrors<T>(peer: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw mapQmpError(error, peer);
  }
}
