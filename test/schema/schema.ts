import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";

export const BASELINE_PATH = fileURLToPath(new URL("baseline.json", import.meta.url));

type Described<Value> = Readonly<Record<string, Value>>;

export interface FieldDescription {
  readonly number: number;
  readonly type: string;
  /** `repeated`, `optional`, `plain`, or the name of the oneof that it belongs to. */
  readonly label: string;
}

export interface MethodDescription {
  readonly request: string;
  readonly response: string;
  readonly streams: "neither" | "request" | "response" | "both";
}

/** What clients of the API depend on, by full names. */
export interface Schema {
  readonly messages: Described<Described<FieldDescription>>;
  readonly enums: Described<Described<number>>;
  readonly services: Described<Described<MethodDescription>>;
}

export async function readBaseline(): Promise<Schema> {
  return JSON.parse(await readFile(BASELINE_PATH, "utf8")) as Schema;
}

/** Of a root whose types are resolved; what is not in `fleece` is left out. */
export function describeSchema(root: protobuf.Root): Schema {
  const messages: Record<string, Described<FieldDescription>> = {};
  const enums: Record<string, Described<number>> = {};
  const services: Record<string, Described<MethodDescription>> = {};
  const visit = (space: protobuf.NamespaceBase): void => {
    for (const item of space.nestedArray) {
      const name = item.fullName.slice(1);
      if (item instanceof protobuf.Enum) enums[name] = { ...item.values };
      else if (item instanceof protobuf.Service) services[name] = byName(item.methodsArray, methodOf);
      else if (item instanceof protobuf.Type) messages[name] = byName(item.fieldsArray, fieldOf);
      if (item instanceof protobuf.Namespace) visit(item);
    }
  };
  const space = root.lookup("fleece");
  if (space instanceof protobuf.Namespace) visit(space);
  return { messages, enums, services };
}

function byName<Item extends { readonly name: string }, Value>(
  items: readonly Item[],
  describe: (item: Item) => Value,
): Described<Value> {
  return Object.fromEntries(items.map((item) => [item.name, describe(item)]));
}

function fieldOf(field: protobuf.Field): FieldDescription {
  const type = field.resolvedType?.fullName.slice(1) ?? field.type;
  const { id: number, repeated, partOf } = field;
  const isOptional = partOf?.name === `_${field.name}`;
  return { number, type, label: repeated ? "repeated" : isOptional ? "optional" : (partOf?.name ?? "plain") };
}

function methodOf(method: protobuf.Method): MethodDescription {
  const { resolvedRequestType, resolvedResponseType, requestStream, responseStream } = method;
  return {
    request: resolvedRequestType?.fullName.slice(1) ?? method.requestType,
    response: resolvedResponseType?.fullName.slice(1) ?? method.responseType,
    streams:
      requestStream === true
        ? responseStream === true
          ? "both"
          : "request"
        : responseStream === true
          ? "response"
          : "neither",
  };
}

/** What of the older schema the newer one lacks or has in another form; what was added breaks nobody. */
export function breaks(older: Schema, newer: Schema): readonly string[] {
  return [
    ...differences("message", "field", older.messages, newer.messages),
    ...differences("enum", "value", older.enums, newer.enums),
    ...differences("service", "method", older.services, newer.services),
  ];
}

function differences(
  group: string,
  part: string,
  older: Described<Described<unknown>>,
  newer: Described<Described<unknown>>,
): readonly string[] {
  return Object.entries(older).flatMap(([name, parts]) => {
    const now = newer[name];
    if (now === undefined) return [`${group} ${name} is gone`];
    return Object.entries(parts).flatMap(([key, before]) => {
      if (now[key] === undefined) return [`${part} ${name}.${key} is gone`];
      const [was, is] = [JSON.stringify(before), JSON.stringify(now[key])];
      return was === is ? [] : [`${part} ${name}.${key} was ${was} and is ${is}`];
    });
  });
}
