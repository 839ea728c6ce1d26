import ts from "typescript";
import type { SchemaEntity } from "../../../src/qmp/index.js";

interface SchemaMember {
  readonly name: string;
  readonly type: string;
  /** Present if the member is optional. */
  readonly default?: unknown;
}

interface SchemaObject {
  readonly members: readonly SchemaMember[];
  readonly tag?: string;
  readonly variants?: readonly { readonly case: string; readonly type: string }[];
}

type Direction = "argument" | "return";

/**
 * Compares hand-written types with QEMU's description of itself. What is sent may be narrower than what QEMU takes;
 * what is received must not claim more than QEMU promises.
 */
export class SchemaComparison {
  readonly differences: string[] = [];
  readonly #checker: ts.TypeChecker;
  readonly #entities: ReadonlyMap<string, SchemaEntity>;
  readonly #seen = new Set<string>();
  readonly #typeNumbers = new Map<ts.Type, number>();

  constructor(checker: ts.TypeChecker, entities: readonly SchemaEntity[]) {
    this.#checker = checker;
    this.#entities = new Map(entities.map((entity) => [entity.name, entity]));
  }

  /** `table` is the interface of all commands. */
  compareCommands(table: ts.Type): void {
    for (const command of table.getProperties()) {
      const entity = this.#entities.get(command.name);
      if (entity?.["meta-type"] !== "command") {
        this.differences.push(`${command.name}: QEMU has no such command`);
        continue;
      }
      const type = this.#checker.getTypeOfSymbol(command);
      const [args, returns] = [this.#member(type, "arguments"), this.#member(type, "returns")];
      if (args.flags & ts.TypeFlags.Undefined)
        this.#requireNoArguments(command.name, String(entity["arg-type"]));
      else this.#compare(args, String(entity["arg-type"]), "argument", command.name);
      this.#compare(returns, String(entity["ret-type"]), "return", command.name);
    }
  }

  /** `table` is the interface of events with their data. */
  compareEvents(table: ts.Type): void {
    for (const event of table.getProperties()) {
      const entity = this.#entities.get(event.name);
      if (entity?.["meta-type"] !== "event") this.differences.push(`${event.name}: QEMU has no such event`);
      else
        this.#compare(this.#checker.getTypeOfSymbol(event), String(entity["arg-type"]), "return", event.name);
    }
  }

  #member(type: ts.Type, name: string): ts.Type {
    const symbol = type.getProperty(name);
    if (symbol === undefined) throw new Error(`Expected a member ${name}`);
    return this.#checker.getTypeOfSymbol(symbol);
  }

  #requireNoArguments(command: string, schemaName: string): void {
    const { members } = this.#object(schemaName);
    if (members.length > 0) this.differences.push(`${command}: has arguments that the table does not know`);
  }

  #object(schemaName: string): SchemaObject {
    return this.#entities.get(schemaName) as unknown as SchemaObject;
  }

  #compare(type: ts.Type, schemaName: string, direction: Direction, path: string): void {
    const number = this.#typeNumbers.get(type) ?? this.#typeNumbers.size;
    this.#typeNumbers.set(type, number);
    const key = `${number} ${schemaName} ${direction}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    // `unknown` promises nothing, so it cannot be wrong.
    if (type.flags & ts.TypeFlags.Unknown) return;
    const entity = this.#entities.get(schemaName);
    const parts = unionParts(type);
    switch (entity?.["meta-type"]) {
      case "object":
        this.#compareObjects(parts, this.#object(schemaName), direction, path);
        break;
      case "array":
        this.#compareArray(type, String(entity["element-type"]), direction, path);
        break;
      case "enum":
        this.#compareEnum(parts, entity["members"] as SchemaMember[], direction, path);
        break;
      case "alternate":
        for (const part of parts)
          this.#compareAlternative(part, entity["members"] as SchemaMember[], direction, path);
        break;
      case "builtin":
        for (const part of parts) this.#compareBuiltin(part, String(entity["json-type"]), path);
        break;
      case "command":
      case "event":
      case undefined:
        this.differences.push(`${path}: QEMU does not describe ${schemaName}`);
    }
  }

  /** The alternatives together must cover the tag's values; each is then compared with its own variant. */
  #compareObjects(types: readonly ts.Type[], schema: SchemaObject, direction: Direction, path: string): void {
    const tag = types.length > 1 ? schema.members.find(({ name }) => name === schema.tag) : undefined;
    if (tag !== undefined) {
      const values = types.flatMap((type) => unionParts(this.#member(type, tag.name)));
      const { members } = this.#object(tag.type);
      this.#compareEnum(values, members, direction, `${path}.${tag.name}`);
    }
    const others = schema.members.filter((member) => member !== tag);
    for (const type of types) {
      const known =
        tag === undefined
          ? type.getProperties()
          : type.getProperties().filter(({ name }) => name !== tag.name);
      this.#compareObject(type, known, { ...schema, members: others }, direction, path);
    }
  }

  #compareObject(
    type: ts.Type,
    properties: readonly ts.Symbol[],
    schema: SchemaObject,
    direction: Direction,
    path: string,
  ): void {
    if (this.#checker.getIndexInfosOfType(type).length > 0) return;
    const members = new Map(this.#membersFor(type, schema).map((member) => [member.name, member]));
    for (const property of properties) {
      const member = members.get(property.name);
      const where = `${path}.${property.name}`;
      if (member === undefined) {
        this.differences.push(`${where}: QEMU has no such member`);
        continue;
      }
      this.#compareOptional(
        (property.flags & ts.SymbolFlags.Optional) !== 0,
        "default" in member,
        direction,
        where,
      );
      this.#compare(this.#checker.getTypeOfSymbol(property), member.type, direction, where);
    }
    if (direction === "return") return;
    for (const member of members.values()) {
      if (!("default" in member) && type.getProperty(member.name) === undefined) {
        this.differences.push(`${path}: required member ${member.name} is missing`);
      }
    }
  }

  #compareOptional(here: boolean, there: boolean, direction: Direction, path: string): void {
    if (here && !there) this.differences.push(`${path}: required in QEMU, optional here`);
    if (!here && there && direction === "return")
      this.differences.push(`${path}: optional in QEMU, required here`);
  }

  /** The common members and those of all variants that the tag's type allows. */
  #membersFor(type: ts.Type, schema: SchemaObject): SchemaMember[] {
    const tag = schema.tag === undefined ? undefined : type.getProperty(schema.tag);
    if (tag === undefined) return [...schema.members];
    const cases = unionParts(this.#checker.getTypeOfSymbol(tag)).map(literalText);
    const variants = (schema.variants ?? []).filter((variant) => cases.includes(variant.case));
    return [...schema.members, ...variants.flatMap((variant) => this.#object(variant.type).members)];
  }

  #compareArray(type: ts.Type, elementName: string, direction: Direction, path: string): void {
    const element = this.#checker.getIndexTypeOfType(
      this.#checker.getNonNullableType(type),
      ts.IndexKind.Number,
    );
    if (element === undefined) this.differences.push(`${path}: an array in QEMU, not here`);
    else this.#compare(element, elementName, direction, `${path}[]`);
  }

  #compareEnum(
    parts: readonly ts.Type[],
    members: readonly SchemaMember[],
    direction: Direction,
    path: string,
  ): void {
    const theirs = members.map(({ name }) => name);
    const ours = parts.map(literalText);
    if (ours.includes(undefined)) {
      if (direction === "argument") this.differences.push(`${path}: an enumeration in QEMU, not here`);
      return;
    }
    if (direction === "argument") {
      const extra = ours.filter((value) => value !== undefined && !theirs.includes(value));
      if (extra.length > 0) this.differences.push(`${path}: QEMU does not take ${extra.join(", ")}`);
    } else {
      const missing = theirs.filter((value) => !ours.includes(value));
      if (missing.length > 0) this.differences.push(`${path}: QEMU may also answer ${missing.join(", ")}`);
    }
  }

  #compareAlternative(
    type: ts.Type,
    members: readonly SchemaMember[],
    direction: Direction,
    path: string,
  ): void {
    const kind = jsonKind(type);
    const fits = members.find(({ type: name }) => {
      const entity = this.#entities.get(name);
      if (entity?.["meta-type"] === "enum") return kind === "string";
      return (entity?.["meta-type"] === "object" ? "object" : entity?.["json-type"]) === kind;
    });
    if (fits === undefined) this.differences.push(`${path}: QEMU does not take ${kind} here`);
    else this.#compare(type, fits.type, direction, path);
  }

  #compareBuiltin(type: ts.Type, jsonType: string, path: string): void {
    const expected = jsonType === "int" ? "number" : jsonType;
    const kind = jsonKind(type);
    if (expected !== "value" && kind !== expected)
      this.differences.push(`${path}: ${expected} in QEMU, ${kind} here`);
  }
}

/** A type's alternatives, without `undefined`. */
function unionParts(type: ts.Type): readonly ts.Type[] {
  const parts = type.isUnion() ? type.types : [type];
  return parts.filter((part) => !(part.flags & ts.TypeFlags.Undefined));
}

function literalText(type: ts.Type): string | undefined {
  return type.isStringLiteral() ? type.value : undefined;
}

function jsonKind(type: ts.Type): string {
  if (type.flags & ts.TypeFlags.StringLike) return "string";
  if (type.flags & ts.TypeFlags.NumberLike) return "number";
  if (type.flags & ts.TypeFlags.BooleanLike) return "boolean";
  if (type.flags & ts.TypeFlags.Null) return "null";
  return "object";
}
