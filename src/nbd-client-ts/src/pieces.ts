export interface PieceLimits {
  readonly pieceBytes: number;
  /** Where pieces meet, multiples of this: as many as possible are aligned. Not more than `pieceBytes`. */
  readonly alignBytes: number;
  readonly concurrency: number;
}

/**
 * Does a range in pieces, a few at a time, in ascending order. After a failure no piece is started, and the first
 * error is thrown once the others have settled, so that nothing still touches the caller's memory.
 */
export async function inPieces(
  range: { readonly offset: number; readonly length: number },
  limits: PieceLimits,
  run: (offset: number, length: number) => Promise<void>,
): Promise<void> {
  const end = range.offset + range.length;
  let next = range.offset;
  let failure: { readonly error: unknown } | undefined;
  const lane = async (): Promise<void> => {
    while (next < end && failure === undefined) {
      const offset = next;
      next = pieceEnd(offset, end, limits);
      try {
        await run(offset, next - offset);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  const lanes = Math.min(limits.concurrency, Math.ceil(range.length / limits.pieceBytes) + 1);
  await Promise.all(Array.from({ length: lanes }, lane));
  throwFailure(failure);
}

function pieceEnd(offset: number, end: number, { pieceBytes, alignBytes }: PieceLimits): number {
  const furthest = offset + pieceBytes;
  if (furthest >= end) return end;
  const aligned = furthest - (furthest % alignBytes);
  return aligned > offset ? aligned : furthest;
}

function throwFailure(failure: { readonly error: unknown } | undefined): void {
  if (failure !== undefined) throw failure.error;
}
