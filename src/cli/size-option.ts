import { InvalidArgumentError } from "@commander-js/extra-typings";
import { parseBytes } from "../shared/units.js";

/** In bytes. */
export function sizeOption(text: string): number {
  const bytes = parseBytes(text);
  if (bytes !== undefined && bytes > 0) return bytes;
  throw new InvalidArgumentError(`Expected a size such as 500M, 10G or 1T, got ${JSON.stringify(text)}.`);
}
