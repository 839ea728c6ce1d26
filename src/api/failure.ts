import { errorMessage, FleeceError } from "../shared/errors.js";

/**
 * The coded error for anything that was thrown. Once a call is cancelled, that is what ended it, whatever broke on the way
 * out; but an answer that was found before, or a clean-up that failed, is worth more.
 */
export function failureOf(error: unknown, signal?: AbortSignal): FleeceError {
  const cancellation: unknown = signal?.aborted === true ? signal.reason : undefined;
  if (cancellation instanceof FleeceError && !outlivesCancellation(error)) return cancellation;
  if (error instanceof FleeceError) return error;
  return new FleeceError("INTERNAL", errorMessage(error), { cause: error });
}

function outlivesCancellation(error: unknown): boolean {
  return error instanceof FleeceError && (error.category !== "failed" || error.code === "CLEANUP_INCOMPLETE");
}
