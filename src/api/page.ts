import { FleeceError } from "../shared/errors.js";

const DEFAULT_SIZE = 100;
const LARGEST_SIZE = 1000;

/** Where an item stands in its list: compared part by part. */
export type PageKey = readonly (string | number)[];

export interface Paging {
  /** 0: the default. */
  readonly pageSize: number;
  /** Empty: the first page. */
  readonly pageToken: string;
}

/**
 * One page of the items, in the order of their keys, which must differ. The token says after which key the next page
 * begins, so it does not matter what is added or removed meanwhile. `scope` is what else was asked for: the token of
 * another list, or with another filter, is refused with INVALID_ARGUMENT.
 */
export function page<Item>(
  items: readonly Item[],
  { pageSize, pageToken }: Paging,
  scope: readonly (string | null)[],
  keyOf: (item: Item) => PageKey,
): { readonly items: readonly Item[]; readonly nextPageToken: string | undefined } {
  if (pageSize < 0) throw invalid("pageSize", `at least 0, got ${pageSize}`);
  const size = Math.min(pageSize === 0 ? DEFAULT_SIZE : pageSize, LARGEST_SIZE);
  const sorted = items.toSorted((a, b) => compare(keyOf(a), keyOf(b)));
  const after = pageToken === "" ? undefined : readToken(pageToken, scope);
  const rest = after === undefined ? sorted : sorted.filter((item) => compare(keyOf(item), after) > 0);
  const shown = rest.slice(0, size);
  const last = shown.at(-1);
  const isLast = last === undefined || shown.length === rest.length;
  return { items: shown, nextPageToken: isLast ? undefined : writeToken(scope, keyOf(last)) };
}

function compare(a: PageKey, b: PageKey): number {
  for (const [index, part] of a.entries()) {
    const other = b[index];
    if (other === undefined || part === other) continue;
    return part < other ? -1 : 1;
  }
  return 0;
}

function writeToken(scope: readonly (string | null)[], key: PageKey): string {
  return Buffer.from(JSON.stringify([scope, key])).toString("base64url");
}

function readToken(token: string, scope: readonly (string | null)[]): PageKey {
  try {
    const value: unknown = JSON.parse(Buffer.from(token, "base64url").toString());
    if (Array.isArray(value) && JSON.stringify(value[0]) === JSON.stringify(scope) && isKey(value[1])) {
      return value[1];
    }
  } catch {
    // Not JSON, so not one of ours.
  }
  throw invalid("pageToken", "the nextPageToken of an answer to the same request");
}

function isKey(value: unknown): value is PageKey {
  return (
    Array.isArray(value) && value.every((part) => typeof part === "string" || Number.isSafeInteger(part))
  );
}

function invalid(field: string, expected: string): FleeceError {
  return new FleeceError("INVALID_ARGUMENT", `Expected for ${field} ${expected}`, { facts: { field } });
}
