import protobuf from "protobufjs";
import { errorMessage, FleeceError } from "../shared/errors.js";
import type { CallName } from "./call-types.js";
import { protoRoot } from "./proto.js";

/** More than any path, name or page token has, and than any domain has disks. */
const LONGEST_TEXT = 4096;
/** These hold documents. */
const DOCUMENTS: ReadonlySet<string> = new Set(["xml", "file"]);
const LONGEST_DOCUMENT = 1024 * 1024;
const MOST_ITEMS = 1024;

/** Takes the place of a request whose bytes are not one. */
export class Undecodable {
  readonly reason: string;

  constructor(reason: string) {
    this.reason = reason;
  }
}

/** A decoder that does not fail: gRPC's own answer would be INTERNAL, before anybody has asked who calls. */
export function tolerant(decode: (bytes: Buffer) => object): (bytes: Buffer) => object {
  return (bytes) => {
    try {
      return decode(bytes);
    } catch (error) {
      return new Undecodable(errorMessage(error));
    }
  };
}

/**
 * Refuses a request from the wire that the types of the handlers have no room for: enum numbers without a name, and
 * integers that are negative or too large for a number, and texts and lists that are longer than any that make sense. No
 * request has a field that may be negative.
 * Fails with INVALID_ARGUMENT, naming the field.
 */
export function checkRequest(name: CallName, request: object): void {
  if (request instanceof Undecodable) {
    throw new FleeceError(
      "INVALID_ARGUMENT",
      `Expected a request of ${name}, got other bytes: ${request.reason}`,
    );
  }
  const [service, method] = name.split(".");
  const type = protoRoot().lookupService(`fleece.v1.${service ?? ""}`).methods[method ?? ""]
    ?.resolvedRequestType;
  if (type) checkMessage(type, request, "");
}

function checkMessage(type: protobuf.Type, message: object, path: string): void {
  const values = message as Readonly<Record<string, unknown>>;
  for (const field of type.fieldsArray) {
    const value = values[field.name];
    if (value === undefined || value === null) continue;
    const here = `${path}${field.name}`;
    for (const [place, item] of itemsOf(field, value, here)) checkValue(field, item, place);
  }
}

/** The one value of a field, or those of a list, or keys and values of a map. */
function itemsOf(
  field: protobuf.Field,
  value: unknown,
  path: string,
): readonly (readonly [string, unknown])[] {
  const items: readonly (readonly [string, unknown])[] = Array.isArray(value)
    ? value.map((item, index) => [`${path}[${index}]`, item])
    : field.map && typeof value === "object" && value !== null
      ? Object.entries(value).flatMap(
          ([key, item]) =>
            [
              [`a key of ${path}`, key],
              [`${path}[${key.slice(0, 60)}]`, item],
            ] as const,
        )
      : [[path, value]];
  if (items.length > MOST_ITEMS) throw invalid(path, `at most ${MOST_ITEMS} values`, items.length);
  return items;
}

function checkValue(field: protobuf.Field, value: unknown, path: string): void {
  const { resolvedType } = field;
  if (resolvedType instanceof protobuf.Type && typeof value === "object" && value !== null) {
    checkMessage(resolvedType, value, `${path}.`);
  } else if (resolvedType instanceof protobuf.Enum && typeof value === "number") {
    throw invalid(path, `a value of ${resolvedType.name}`, value);
  } else if (typeof value === "string" && value.length > longest(field)) {
    throw invalid(path, `at most ${longest(field)} characters`, value.length);
  } else if (typeof value === "number" && (value < 0 || !Number.isSafeInteger(value))) {
    throw invalid(path, `a number from 0 to ${Number.MAX_SAFE_INTEGER}`, value);
  }
}

function longest({ name }: protobuf.Field): number {
  return DOCUMENTS.has(name) ? LONGEST_DOCUMENT : LONGEST_TEXT;
}

function invalid(field: string, expected: string, got: number): FleeceError {
  return new FleeceError("INVALID_ARGUMENT", `Expected ${expected} for ${field}, got ${got}`, {
    facts: { field },
  });
}
