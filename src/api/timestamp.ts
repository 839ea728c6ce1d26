import type { Timestamp__Output } from "./generated/google/protobuf/Timestamp.js";
import type { Message } from "./messages.js";

/** google.protobuf.Timestamp: seconds since 1970 in UTC, and nanoseconds within the second (0 to 999,999,999). */
export type Timestamp = Message<Timestamp__Output>;

export function timestampFromMs(timeMs: number): Timestamp {
  const seconds = Math.floor(timeMs / 1000);
  return { seconds, nanos: (timeMs - seconds * 1000) * 1_000_000 };
}

/** From an RFC 3339 text, as manifests hold it. */
export function timestampFromText(time: string): Timestamp {
  return timestampFromMs(Date.parse(time));
}

/** Unix milliseconds; what is finer is cut off. */
export function timestampToMs({ seconds, nanos }: Timestamp): number {
  return seconds * 1000 + Math.floor(nanos / 1_000_000);
}
