import { FleeceError } from "../../shared/errors.js";
import { quoted, xmlError } from "./xml-error.js";
import type { XmlElement } from "./xml-reader.js";

/** Turns a text into what it means; the FleeceErrors that it throws get the line put before them. */
export type Convert<T> = (text: string) => T;

/** By what they are called in messages. */
type Keys<T> = Readonly<Record<string, (value: T) => string | undefined>>;

/** Reads an element by asking for what its form has; fails with XML_INVALID if it has anything else. */
export function readElement<T>(element: XmlElement, read: (fields: ElementFields) => T): T {
  const fields = new ElementFields(element);
  const value = read(fields);
  fields.refuseOthers();
  return value;
}

/** As `readElement`, for the outermost element. */
export function readRoot<T>(root: XmlElement, name: string, read: (fields: ElementFields) => T): T {
  if (root.name !== name) throw xmlError(root.line, `the element <${name}>`, shown(root));
  return readElement(root, read);
}

export class ElementFields {
  readonly #element: XmlElement;
  readonly #attributes = new Set<string>();
  readonly #children = new Set<string>();
  #hasText = false;

  constructor(element: XmlElement) {
    this.#element = element;
  }

  get line(): number {
    return this.#element.line;
  }

  attribute<T>(name: string, convert: Convert<T>): T {
    const value = this.optionalAttribute(name, convert);
    if (value !== undefined) return value;
    throw xmlError(this.line, `the attribute ${name} of <${this.#element.name}>`, "none");
  }

  optionalAttribute<T>(name: string, convert: Convert<T>): T | undefined {
    this.#attributes.add(name);
    const found = this.#element.attributes.get(name);
    return found === undefined ? undefined : atLine(found.line, () => convert(found.value));
  }

  child<T>(name: string, read: (fields: ElementFields) => T): T {
    const value = this.optionalChild(name, read);
    if (value !== undefined) return value;
    throw xmlError(this.line, `an element <${name}> in <${this.#element.name}>`, "none");
  }

  optionalChild<T>(name: string, read: (fields: ElementFields) => T): T | undefined {
    const [first, second] = this.#named(name);
    if (second !== undefined) {
      throw xmlError(second.line, `one <${name}> in <${this.#element.name}>`, "a second one");
    }
    return first === undefined ? undefined : readElement(first, read);
  }

  /** All of that name, in the order of the document. No two of them may have the same key of a kind. */
  children<T>(name: string, read: (fields: ElementFields) => T, unique: Keys<T> = {}): T[] {
    const elements = this.#named(name);
    const values = elements.map((element) => readElement(element, read));
    for (const [what, keyOf] of Object.entries(unique)) {
      const lines = new Map<string, number>();
      for (const [index, value] of values.entries()) {
        const key = keyOf(value);
        if (key === undefined) continue;
        const line = elements[index]?.line ?? this.line;
        const before = lines.get(key);
        if (before !== undefined) {
          throw xmlError(line, `each ${what} once`, `${quoted(key)} again, after line ${before}`);
        }
        lines.set(key, line);
      }
    }
    return values;
  }

  text<T>(convert: Convert<T>): T {
    this.#hasText = true;
    return atLine(this.line, () => convert(this.#element.text));
  }

  refuseOthers(): void {
    const { name, attributes, children, textLine, text } = this.#element;
    for (const [attribute, { line }] of attributes) {
      if (this.#attributes.has(attribute)) continue;
      throw xmlError(line, this.#only(this.#attributes, "attribute"), quoted(attribute));
    }
    const other = children.find((child) => !this.#children.has(child.name));
    if (other !== undefined) throw xmlError(other.line, this.#only(this.#children, "element"), shown(other));
    if (textLine === undefined || this.#hasText) return;
    throw xmlError(textLine, `no text in <${name}>`, quoted(text.trim()));
  }

  #named(name: string): readonly XmlElement[] {
    this.#children.add(name);
    return this.#element.children.filter((child) => child.name === name);
  }

  #only(known: ReadonlySet<string>, what: string): string {
    const { name } = this.#element;
    return known.size === 0
      ? `no ${what} in <${name}>`
      : `only ${what}s of <${name}>: ${[...known].join(", ")}`;
  }
}

export function oneOf<const T extends string>(...allowed: readonly T[]): Convert<T> {
  return (text) => {
    const found = allowed.find((value) => value === text);
    if (found !== undefined) return found;
    throw new FleeceError("XML_INVALID", `expected ${allowed.map(quoted).join(" or ")}, got ${quoted(text)}`);
  };
}

function atLine<T>(line: number, action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (!(error instanceof FleeceError)) throw error;
    const facts = { ...error.facts, line };
    throw new FleeceError(error.code, `Line ${line}: ${error.message}`, { cause: error, facts });
  }
}

function shown({ name }: XmlElement): string {
  return quoted(`<${name}>`).slice(1, -1);
}
