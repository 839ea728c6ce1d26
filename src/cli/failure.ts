import { CommanderError } from "@commander-js/extra-typings";
import { failureOf } from "../api/failure.js";
import type { ErrorCategory } from "../shared/errors.js";
import { errorMessage, FleeceError } from "../shared/errors.js";
import { printable } from "./printable.js";

/** Part of the public contract: scripts depend on them. */
export const EXIT_CODES = {
  failed: 1,
  usage: 2,
  "not-found": 3,
  conflict: 4,
  unreachable: 5,
  damage: 6,
} as const satisfies Record<ErrorCategory, number>;

/** The coded error for anything that was thrown: see `failureOf`. */
export function toFailure(error: unknown, signal?: AbortSignal): FleeceError {
  return failureOf(error instanceof CommanderError ? usageFailure(error) : error, signal);
}

/**
 * Commander writes `error: unknown option '--x'\n(Did you mean --y?)`, and of a value that our own code refuses both its words
 * and ours, which say all.
 */
function usageFailure(error: CommanderError): FleeceError {
  const text = error.message
    .replace(/^error: /, "")
    .replace(/ argument '.*' is invalid\. Expected/s, ": expected")
    .replace(/\n+/g, " ")
    .replace(/\.$/, "")
    .trim();
  return new FleeceError("INVALID_ARGUMENT", text.charAt(0).toUpperCase() + text.slice(1), { cause: error });
}

export interface FailureStyle {
  readonly json: boolean;
  /** With the stack of everything that led to it. */
  readonly debug: boolean;
}

/** What goes to stderr, with a newline at its end. */
export function describeFailure(failure: FleeceError, { json, debug }: FailureStyle): string {
  const { code, message, facts } = failure;
  const trace = debug ? `${traceOf(failure)}\n` : "";
  if (json) return `${trace}${JSON.stringify({ error: { code, message, facts } })}\n`;
  const { problems } = facts;
  const lines = Array.isArray(problems)
    ? [
        `fleece: The configuration cannot be used (${code})`,
        ...problems.map((problem) => `  ${printable(String(problem))}`),
      ]
    : [`fleece: ${printable(message)} (${code})`];
  if (code === "INTERNAL" && !debug) {
    lines.push("  This is a defect of fleece; --log-level debug shows where it happened");
  }
  return `${trace}${lines.join("\n")}\n`;
}

function traceOf(error: unknown): string {
  const lines: string[] = [];
  for (let next = error; next !== undefined; next = next instanceof Error ? next.cause : undefined) {
    lines.push(next instanceof Error ? (next.stack ?? next.message) : errorMessage(next));
    if (lines.length > 20) break;
  }
  return lines.map((stack) => stack.split("\n").map(printable).join("\n")).join("\ncaused by ");
}
