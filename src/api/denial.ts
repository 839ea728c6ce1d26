import { type Client, permits, type Role } from "../model/access.js";
import { FleeceError } from "../shared/errors.js";
import type { CallName } from "./call-types.js";
import { CALLS } from "./calls.js";

/** Undefined if the client may make the call: the table of calls says it. */
export function denialOf(name: CallName, request: object, client: Client): FleeceError | undefined {
  const { role, administers = [] } = CALLS[name] as Rule;
  const field = administers.find((key) => isSet((request as Readonly<Record<string, unknown>>)[key]));
  const needed = field === undefined ? role : "administrator";
  if (permits(client.role, needed)) return undefined;
  const what = field === undefined ? name : `${name} with ${field}`;
  return new FleeceError(
    "ACCESS_DENIED",
    `Expected a client with the role ${needed} for ${what}, got ${client.name} with the role ${client.role}`,
    { facts: { client: client.name, role: client.role, needed } },
  );
}

/** Lists and maps that nothing was put in are empty. */
function isSet(value: unknown): boolean {
  return typeof value === "object" && value !== null ? Object.keys(value).length > 0 : value !== undefined;
}

/** The part of a call's entry that is the same for all. */
interface Rule {
  readonly role: Role;
  readonly administers?: readonly string[];
}
