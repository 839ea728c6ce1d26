import { FleeceError } from "../shared/errors.js";

/**
 * Names become path components, node names, bitmap names, NBD export names and XML. One rule for all of them keeps each
 * of those safe: printable ASCII without separators or quotes, no leading dot or dash, bounded length.
 */
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.:+@=-]*$/;

const MAX_LENGTH = {
  domain: 128,
  disk: 64,
  checkpoint: 128,
  "block snapshot": 128,
  "domain snapshot": 128,
  backup: 64,
  repository: 64,
  job: 64,
} as const;

export type NameKind = keyof typeof MAX_LENGTH;

/** Returns `name` if it may be used, else throws INVALID_NAME saying what was expected and what came. */
export function checkName(kind: NameKind, name: string): string {
  const max = MAX_LENGTH[kind];
  if (name.length <= max && NAME.test(name)) return name;
  const shown = name.length > 60 ? `${name.slice(0, 60)}… (${name.length} characters)` : name;
  throw new FleeceError(
    "INVALID_NAME",
    `Expected a ${kind} name of 1 to ${max} letters, digits and _ . : + @ = - that starts with a letter, digit or _, got ${JSON.stringify(shown)}`,
    { facts: { kind } },
  );
}

export function isName(kind: NameKind, name: string): boolean {
  return name.length <= MAX_LENGTH[kind] && NAME.test(name);
}
