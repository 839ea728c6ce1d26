import protobuf from "protobufjs";
import { FleeceError } from "../shared/errors.js";
import type { CallName } from "./call-types.js";
import { protoRoot } from "./proto.js";

/**
 * Refuses a request from the wire that the types of the handlers have no room for: enum numbers without a name, and
 * integers that are negative or too large for a number. No request has a field that may be negative.
 * Fails with INVALID_ARGUMENT, naming the field.
 */
export function checkRequest(name: CallName, request: object): void {
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
  } else if (typeof value === "number" && (value < 0 || !Number.isSafeInteger(value))) {
    throw invalid(path, `a number from 0 to ${Number.MAX_SAFE_INTEGER}`, value);
  }
}

function invalid(field: string, expected: string, got: number): FleeceError {
  return new FleeceError("INVALID_ARGUMENT", `Expected ${expected} for ${field}, got ${got}`, {
    facts: { field },
  });
}
