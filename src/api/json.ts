import protobuf from "protobufjs";
import { FleeceError } from "../shared/errors.js";
import type { MessageTypes } from "./messages.js";
import { protoRoot } from "./proto.js";

/**
 * Messages in the JSON form of proto3, driven by the .proto files: field names in lowerCamelCase, 64-bit integers as
 * strings, enums by name, Timestamp as RFC 3339 in UTC. Every field is present, with its default where the message has no
 * value, so that scripts need not guess; only fields that tell "unset" from a value are left out while unset: those marked
 * `optional`, and messages.
 */
export type JsonValue =
  string | number | boolean | readonly JsonValue[] | { readonly [key: string]: JsonValue };

/**
 * Fails with INTERNAL when the object does not fit the schema: an unknown field, a wrong type, an unknown enum name. That
 * keeps code and .proto files from drifting apart.
 */
export function toJson<Name extends keyof MessageTypes>(name: Name, message: MessageTypes[Name]): JsonValue {
  return messageToJson(protoRoot().lookupType(`fleece.v1.${name}`), message, name);
}

export function messageToJson(type: protobuf.Type, message: unknown, path: string): JsonValue {
  if (!isRecord(message)) throw drift(path, `an object of type ${type.name}`, message);
  if (type.fullName === ".google.protobuf.Timestamp") return timestampToJson(message, path);
  for (const key of Object.keys(message)) {
    if (type.fields[key] === undefined)
      throw drift(`${path}.${key}`, `only fields of ${type.name}`, "an unknown one");
  }
  const json: Record<string, JsonValue> = {};
  for (const field of type.fieldsArray) {
    // Null is what a decoder gives for a message that is not there.
    const isUnset = message[field.name] === null && field.resolvedType instanceof protobuf.Type;
    const value = isUnset ? undefined : message[field.name];
    const printed = fieldToJson(field, value, `${path}.${field.name}`);
    if (printed !== undefined) json[field.name] = printed;
  }
  return json;
}

function fieldToJson(field: protobuf.Field, value: unknown, path: string): JsonValue | undefined {
  if (field.map) throw drift(path, "no map field, as printing one is not written yet", "one");
  if (field.repeated) {
    if (value === undefined) return [];
    if (!Array.isArray(value)) throw drift(path, "an array", value);
    return value.map((item: unknown, index) => valueToJson(field, item, `${path}[${index}]`));
  }
  if (value !== undefined) return valueToJson(field, value, path);
  const tellsUnset = field.hasPresence || field.resolvedType instanceof protobuf.Type;
  return tellsUnset ? undefined : defaultOf(field);
}

function valueToJson(field: protobuf.Field, value: unknown, path: string): JsonValue {
  const { resolvedType } = field;
  if (resolvedType instanceof protobuf.Type) return messageToJson(resolvedType, value, path);
  if (resolvedType instanceof protobuf.Enum) {
    if (typeof value === "string" && Object.hasOwn(resolvedType.values, value)) return value;
    throw drift(path, `a value of enum ${resolvedType.name}`, value);
  }
  return scalarToJson(field.type, value, path);
}

function scalarToJson(type: string, value: unknown, path: string): JsonValue {
  switch (type) {
    case "string":
      if (typeof value === "string") return value;
      break;
    case "bool":
      if (typeof value === "boolean") return value;
      break;
    case "int32":
    case "uint32":
      if (Number.isSafeInteger(value) && typeof value === "number") return value;
      break;
    case "int64":
    case "uint64":
      if (Number.isSafeInteger(value)) return String(value);
      if (typeof value === "string" && /^-?\d{1,20}$/.test(value)) return value;
      break;
    default:
      throw drift(path, "a scalar type that can be printed", type);
  }
  throw drift(path, `a value of type ${type}`, value);
}

function defaultOf({ type, resolvedType }: protobuf.Field): JsonValue {
  if (resolvedType instanceof protobuf.Enum) return resolvedType.valuesById[0] ?? "";
  if (type === "string") return "";
  if (type === "bool") return false;
  return type.endsWith("64") ? "0" : 0;
}

/** 0001-01-01 to 9999-12-31, as the definition of Timestamp has it. */
const MIN_SECONDS = -62_135_596_800;
const MAX_SECONDS = 253_402_300_799;

function timestampToJson(
  { seconds = 0, nanos = 0 }: Readonly<Record<string, unknown>>,
  path: string,
): string {
  const whole = typeof seconds === "string" ? Number(seconds) : seconds;
  const inRange =
    typeof whole === "number" && Number.isSafeInteger(whole) && whole >= MIN_SECONDS && whole <= MAX_SECONDS;
  if (!inRange) throw drift(`${path}.seconds`, "seconds from the year 1 to 9999", seconds);
  if (typeof nanos !== "number" || !Number.isSafeInteger(nanos) || nanos < 0 || nanos > 999_999_999) {
    throw drift(`${path}.nanos`, "nanoseconds from 0 to 999999999", nanos);
  }
  return new Date(whole * 1000).toISOString().replace(".000Z", `${fraction(nanos)}Z`);
}

/** None, three, six or nine digits, whichever is enough. */
function fraction(nanos: number): string {
  if (nanos === 0) return "";
  return `.${String(nanos)
    .padStart(9, "0")
    .replace(/(?:000){1,2}$/, "")}`;
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function drift(path: string, expected: string, got: unknown): FleeceError {
  const shown = typeof got === "string" ? got : ((JSON.stringify(got) as string | undefined) ?? "nothing");
  return new FleeceError(
    "INTERNAL",
    `A message does not fit its definition: expected ${expected} at ${path}, got ${shown}`,
    {
      facts: { path },
    },
  );
}

/** The same as text, with a newline at its end. */
export function messageToText<Name extends keyof MessageTypes>(
  name: Name,
  message: MessageTypes[Name],
): string {
  return `${JSON.stringify(toJson(name, message), undefined, 2)}\n`;
}
