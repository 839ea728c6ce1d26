import { InvalidArgumentError } from "@commander-js/extra-typings";
import { parseDuration } from "../shared/units.js";

/** In milliseconds. */
export function durationOption(text: string): number {
  const ms = parseDuration(text);
  if (ms !== undefined) return ms;
  throw new InvalidArgumentError(
    `Expected a number with a unit, s, m, h or d (90s, 30m, 2h, 1d), got ${JSON.stringify(text)}.`,
  );
}
