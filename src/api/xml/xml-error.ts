import { FleeceError } from "../../shared/errors.js";

/** Lines are counted from 1. */
export function xmlError(line: number, expected: string, got: string): FleeceError {
  return new FleeceError("XML_INVALID", `Line ${line}: expected ${expected}, got ${got}`, {
    facts: { line },
  });
}

/** In quotes, with control characters escaped, and cut. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);
}
