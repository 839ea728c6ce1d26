import protobuf from "protobufjs";
import { errorMessage, FleeceError } from "../shared/errors.js";
import type { CallName } from "./call-types.js";
import { protoRoot } from "./proto.js";

/** More than any path, name or page token has, and than any domain has disks. */
const LONGEST_TEXT = 4096;
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
    if (Array.isArray(value) && value.length > MOST_ITEMS) {
      throw invalid(here, `at most ${MOST_ITEMS} values`, value.length);
    }
    if (Array.isArray(value)) value.forEach((item, index) => checkValue(field, item, `${here}[${index}]`));
    else checkValue(field, value, here);
  }
}

function checkValue(field: protobuf.Field, value: unknown, path: string): void {
  const { resolvedType } = field;
  if (resolvedType instanceof protobuf.Type && typeof value === "object" && value !== null) {
    checkMessage(resolvedType, value, `${path}.`);
  } else if (resolvedType instanceof protobuf.Enum && typeof value === "number") {
    throw invalid(path, `a value of ${resolvedType.name}`, value);
  } else if (typeof value === "string" && value.length > LONGEST_TEXT) {
    throw invalid(path, `at most ${LONGEST_TEXT} characters`, value.length);
  } else if (typeof value === "number" && (value < 0 || !Number.isSafeInteger(value))) {
    throw invalid(path, `a number from 0 to ${Number.MAX_SAFE_INTEGER}`, value);
  }
}

function invalid(field: string, expected: string, got: number): FleeceError {
  return new FleeceError("INVALID_ARGUMENT", `Expected ${expected} for ${field}, got ${got}`, {
    facts: { field },
  });
}
