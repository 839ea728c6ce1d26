import { type OptionPair, parseOptionString, printOptionString } from "./option-string.js";

/**
 * The members of an option's value (`-device`, `-object`, `-blockdev` and so on), which is JSON or an option string. Of JSON, members of
 * members have dotted keys, as option strings have them, too.
 */
export class OptionFields {
  readonly #isJson: boolean;
  readonly #implied: string;
  #pairs: readonly OptionPair[] = [];
  #json: Readonly<Record<string, unknown>> = {};

  /** `implied`: the key of a first part without one. */
  constructor(text: string, implied: string) {
    const json = text.startsWith("{") ? parseObject(text) : undefined;
    this.#isJson = json !== undefined;
    this.#implied = implied;
    if (json !== undefined) this.#json = json;
    else this.#pairs = parseOptionString(text);
  }

  /** As text, `on` for JSON's `true`. Undefined if there is none, or `null`. */
  get(key: string): string | undefined {
    if (!this.#isJson) return this.#pairs.findLast((pair, index) => this.#keyOf(pair, index) === key)?.value;
    let value: unknown = this.#json;
    for (const step of key.split(".")) value = isObject(value) ? value[step] : undefined;
    if (value === true) return "on";
    if (value === false) return "off";
    return typeof value === "string" || typeof value === "number" ? String(value) : undefined;
  }

  /** Whether there is a member of this name, or a flag, whatever its value is. */
  has(name: string): boolean {
    if (this.#isJson) return this.#json[name] !== undefined && this.#json[name] !== null;
    return this.#pairs.some((pair, index) => {
      const key = this.#keyOf(pair, index) ?? pair.value;
      return key === name || key.startsWith(`${name}.`);
    });
  }

  /** Of a member that is there, also one of another member; the first level may be new. */
  set(key: string, value: string): void {
    if (this.#isJson) this.#json = replaced(this.#json, key.split("."), value);
    else this.#pairs = [...this.#pairs.filter((pair) => pair.key !== key), { key, value }];
  }

  #keyOf({ key }: OptionPair, index: number): string | undefined {
    return key ?? (index === 0 ? this.#implied : undefined);
  }

  remove(name: string): void {
    this.#json = Object.fromEntries(Object.entries(this.#json).filter(([key]) => key !== name));
    this.#pairs = this.#pairs.filter((pair, index) => (this.#keyOf(pair, index) ?? pair.value) !== name);
  }

  print(): string {
    return this.#isJson ? JSON.stringify(this.#json) : printOptionString(this.#pairs);
  }
}

function replaced(
  object: Readonly<Record<string, unknown>>,
  [first = "", ...rest]: readonly string[],
  value: string,
): Record<string, unknown> {
  const inner = object[first];
  const next = rest.length === 0 ? value : replaced(isObject(inner) ? inner : {}, rest, value);
  return { ...object, [first]: next };
}

/** Undefined for what is no JSON: QEMU will say so. */
function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
