/**
 * Does a range in pieces, a few at a time, in ascending order. After a failure no piece is started, and the first
 * error is thrown once the others have settled, so that nothing still touches the caller's memory.
 */
export async function inPieces(
  range: { readonly offset: number; readonly length: number },
  limits: { readonly pieceBytes: number; readonly concurrency: number },
  run: (offset: number, length: number) => Promise<void>,
): Promise<void> {
  const end = range.offset + range.length;
  let next = range.offset;
  let failure: { readonly error: unknown } | undefined;
  const lane = async (): Promise<void> => {
    while (next < end && failure === undefined) {
      const offset = next;
      next = Math.min(end, offset + limits.pieceBytes);
      try {
        await run(offset, next - offset);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  const lanes = Math.min(limits.concurrency, Math.ceil(range.length / limits.pieceBytes));
  await Promise.all(Array.from({ length: lanes }, lane));
  throwFailure(failure);
}

function throwFailure(failure: { readonly error: unknown } | undefined): void {
  if (failure !== undefined) throw failure.error;
}
