import { NbdError } from "./errors.js";

export interface ExportShape {
  readonly sizeBytes: number;
  /** Power of two that offsets and lengths must be multiples of, except at the end of the export. */
  readonly minimumBytes: number;
}

export function checkRange(command: string, shape: ExportShape, offset: number, length: number): void {
  const valid = isByteCount(offset) && isByteCount(length) && offset + length <= shape.sizeBytes;
  if (valid) return;
  throw new NbdError(
    "OUT_OF_RANGE",
    `Expected a range for ${command} within the ${shape.sizeBytes} bytes of the export, got ${length} bytes at ${offset}`,
    { command, offset, length },
  );
}

/** For commands that cannot be widened: a write of more than was asked would need a read first. */
export function checkAligned(command: string, shape: ExportShape, offset: number, length: number): void {
  const wide = widen(shape, offset, length);
  if (wide.offset === offset && wide.length === length) return;
  throw new NbdError(
    "UNALIGNED",
    `Expected multiples of ${shape.minimumBytes} bytes for ${command}, got ${length} bytes at ${offset}`,
    { command, offset, length },
  );
}

/** The smallest range that the server accepts around this one: aligned, or up to the unaligned end of the export. */
export function widen(
  shape: ExportShape,
  offset: number,
  length: number,
): { offset: number; length: number } {
  const { minimumBytes, sizeBytes } = shape;
  if (length === 0) return { offset, length };
  const start = offset - (offset % minimumBytes);
  const end = Math.min(Math.ceil((offset + length) / minimumBytes) * minimumBytes, sizeBytes);
  return { offset: start, length: end - start };
}

/** The largest range of whole blocks within this one, perhaps empty. The end of the export counts as a boundary. */
export function narrow(
  shape: ExportShape,
  offset: number,
  length: number,
): { offset: number; length: number } {
  const { minimumBytes, sizeBytes } = shape;
  const start = Math.ceil(offset / minimumBytes) * minimumBytes;
  const unaligned = offset + length;
  const end = unaligned === sizeBytes ? unaligned : unaligned - (unaligned % minimumBytes);
  return { offset: start, length: Math.max(0, end - start) };
}

function isByteCount(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}
