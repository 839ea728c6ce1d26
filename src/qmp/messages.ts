import { QmpError } from "./errors.js";
import type { QmpEvent } from "./schema/events.js";
import type { QmpVersion } from "./version.js";

/** One message of the server (QMP specification, sections 2.2 to 2.5). */
export type QmpMessage =
  | { readonly kind: "greeting"; readonly version: QmpVersion }
  | { readonly kind: "event"; readonly event: QmpEvent }
  | { readonly kind: "return"; readonly id: unknown; readonly value: unknown }
  | { readonly kind: "error"; readonly id: unknown; readonly qmpClass: string; readonly text: string }
  | { readonly kind: "invalid"; readonly reason: string };

type JsonObject = Readonly<Record<string, unknown>>;

/** Long enough to recognise a foreign protocol by, short enough for a log line. */
const excerptCharacters = 80;

function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function invalid(expected: string, text: string): QmpMessage {
  const excerpt = text.length > excerptCharacters ? `${text.slice(0, excerptCharacters)}…` : text;
  return { kind: "invalid", reason: `expected ${expected}, got ${JSON.stringify(excerpt)}` };
}

function parseGreeting(greeting: unknown): QmpMessage | undefined {
  const version = isObject(greeting) ? greeting["version"] : undefined;
  if (!isObject(version) || !isObject(version["qemu"])) return undefined;
  const { major, minor, micro } = version["qemu"];
  if (!isCount(major) || !isCount(minor) || !isCount(micro)) return undefined;
  const suffix = version["package"];
  return {
    kind: "greeting",
    version: { major, minor, micro, package: typeof suffix === "string" ? suffix : "" },
  };
}

function parseEvent(message: JsonObject): QmpMessage | undefined {
  const { event, data = {}, timestamp } = message;
  if (typeof event !== "string" || !isObject(data) || !isObject(timestamp)) return undefined;
  const { seconds, microseconds } = timestamp;
  if (typeof seconds !== "number" || typeof microseconds !== "number") return undefined;
  return { kind: "event", event: { event, data, timestamp: { seconds, microseconds } } };
}

function parseError(message: JsonObject): QmpMessage | undefined {
  const { error, id } = message;
  if (!isObject(error) || typeof error["class"] !== "string" || typeof error["desc"] !== "string")
    return undefined;
  return { kind: "error", id, qmpClass: error["class"], text: error["desc"] };
}

/** Reads one line of the server. Total: what is no message comes back as `invalid`, with the reason. */
export function parseMessage(text: string): QmpMessage {
  let message: unknown;
  try {
    message = JSON.parse(text);
  } catch {
    return invalid("a line of JSON", text);
  }
  if (!isObject(message)) return invalid("a JSON object", text);
  if ("return" in message) return { kind: "return", id: message["id"], value: message["return"] };
  if ("error" in message) return parseError(message) ?? invalid("an error with class and desc", text);
  if ("event" in message)
    return parseEvent(message) ?? invalid("an event with name, data and timestamp", text);
  if ("QMP" in message)
    return parseGreeting(message["QMP"]) ?? invalid("a greeting with QEMU's version", text);
  return invalid("a greeting, reply or event", text);
}

/**
 * Writes one command as a line. JSON numbers beyond 2^53 would reach QEMU rounded, so they are refused (QMP_ARGUMENT).
 */
export function encodeCommand(id: string, command: string, args: object | undefined): string {
  const checkNumber = (member: string, value: unknown): unknown => {
    if (
      typeof value === "number" &&
      (!Number.isFinite(value) || (Number.isInteger(value) && !Number.isSafeInteger(value)))
    ) {
      throw new QmpError("QMP_ARGUMENT", `Expected a safe integer or a fraction as ${member}, got ${value}`, {
        command,
      });
    }
    return value;
  };
  return `${JSON.stringify({ execute: command, arguments: args, id }, checkNumber)}\r\n`;
}
