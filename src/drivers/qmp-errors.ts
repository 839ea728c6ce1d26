import { FleeceError } from "../shared/errors.js";
import { isQmpError } from "../qmp/index.js";

/**
 * Gives an error of a QMP session the code that says what may be done next: QEMU's own refusal is final for that
 * command, anything else means that the peer cannot be relied on any more.
 */
export function mapQmpError(error: unknown, peer: string): unknown {
  if (!isQmpError(error)) return error;
  if (isQmpError(error, "QMP_COMMAND_FAILED", "QMP_JOB_FAILED", "QMP_JOB_LOST", "QMP_ARGUMENT")) {
    const code = /No space left on device/.test(error.message) ? "NO_SPACE" : "QEMU_FAILED";
    return new FleeceError(code, `${peer}: ${error.message}`, { cause: error });
  }
  if (isQmpError(error, "QMP_ABORTED")) return new FleeceError("INTERRUPTED", "Cancelled", { cause: error });
  return new FleeceError("DOMAIN_UNREACHABLE", `${peer}: ${error.message}`, { cause: error });
}

export async function withQmpErrors<T>(peer: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw mapQmpError(error, peer);
  }
}
