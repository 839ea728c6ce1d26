/** A run of bytes that is either to be copied, or known to be zero. */
export interface CopyRun {
  readonly offset: number;
  readonly length: number;
  readonly zero: boolean;
}

/**
 * Moves the boundaries of runs, which come in order and without gaps, to multiples of a block size: a block that is data
 * in part is data. Only the first boundary and the last stay where they are.
 */
export async function* alignRuns(runs: AsyncIterable<CopyRun>, blockBytes: number): AsyncGenerator<CopyRun> {
  let held: CopyRun | undefined;
  for await (const run of runs) {
    const heldEnd = held === undefined ? 0 : held.offset + held.length;
    const end = run.offset + run.length;
    if (held === undefined) {
      held = run;
      continue;
    }
    // Data grows over the zeroes on either side.
    const border: number = run.zero
      ? Math.ceil(heldEnd / blockBytes) * blockBytes
      : Math.floor(heldEnd / blockBytes) * blockBytes;
    if (held.zero === run.zero || border >= end) {
      held = between(held.offset, end, held.zero);
    } else if (border <= held.offset) {
      held = between(held.offset, end, run.zero);
    } else {
      yield between(held.offset, border, held.zero);
      held = between(border, end, run.zero);
    }
  }
  if (held !== undefined) yield held;
}

/** Cuts a run at multiples of `pieceBytes`, so that pieces do not straddle a server's clusters. */
export function* cutRun(run: CopyRun, pieceBytes: number): Generator<CopyRun> {
  const end = run.offset + run.length;
  for (let at = run.offset; at < end;) {
    const next = Math.min(end, at - (at % pieceBytes) + pieceBytes);
    yield between(at, next, run.zero);
    at = next;
  }
}

function between(start: number, end: number, zero: boolean): CopyRun {
  return { offset: start, length: end - start, zero };
}
