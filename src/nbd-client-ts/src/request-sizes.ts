import { LIMIT } from "./constants.js";
import { NbdError } from "./errors.js";
import type { BlockSize } from "./option-go.js";

/** How long requests are, all in bytes and multiples of the minimum block size. */
export interface RequestSizes {
  /** READ and WRITE. */
  readonly payloadBytes: number;
  readonly cacheBytes: number;
  /** The one READ of a warm-up. */
  readonly warmUpBytes: number;
  /** Commands without a payload, for a server that refused a longer one ("Size constraints" lets it). */
  readonly cautiousBytes: number;
  /** Pieces meet at multiples of this: the preferred size where a piece is that long. */
  readonly alignBytes: number;
}

export function requestSizes({ minimumBytes, preferredBytes, maximumBytes }: BlockSize): RequestSizes {
  const atMost = (bytes: number) => {
    const allowed = Math.min(bytes, maximumBytes, LIMIT.defaultMaximumBytes);
    return allowed - (allowed % minimumBytes);
  };
  const payloadBytes = atMost(Math.max(LIMIT.payloadBytes, preferredBytes));
  return {
    payloadBytes,
    cacheBytes: atMost(LIMIT.cacheBytes),
    warmUpBytes: atMost(LIMIT.warmUpBytes),
    cautiousBytes: atMost(LIMIT.cautiousBytes),
    alignBytes: preferredBytes <= payloadBytes ? preferredBytes : minimumBytes,
  };
}

/** The server may mean that the request is too long; a shorter one then tells. */
export function mayBeTooLong(error: unknown): boolean {
  return error instanceof NbdError && (error.errno === "EOVERFLOW" || error.errno === "EINVAL");
}
