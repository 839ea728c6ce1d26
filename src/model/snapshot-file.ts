import { errorMessage, FleeceError } from "../shared/errors.js";
import type { SnapshotKind } from "./domain-snapshot.js";
import { checkName } from "./names.js";
import { checkFilePath } from "./paths.js";

/** What a file or an XML document says of a domain snapshot to create. */
export interface SnapshotWishes {
  readonly name?: string;
  readonly description?: string;
  /** Whether memory is included; left out where the document does not say. */
  readonly memory?: boolean;
  readonly memoryPath?: string;
  /** Of the memory, and so of all disks; left out where the document does not say. */
  readonly kind?: SnapshotKind;
  /** Left out where the document does not say. */
  readonly disks?: readonly WishedDisk[];
}

export interface WishedDisk {
  /** A target or the path of the disk's file. */
  readonly disk: string;
  readonly kind?: SnapshotKind | "no";
  /** The overlay to make. */
  readonly overlay?: string;
}

/**
 * Reads a file in the style of `xl.cfg`: lines `KEY = VALUE`, strings in quotes, lists in brackets, comments after `#`. Two forms are
 * known, the one with `disks` and `memory = 0|1` (the ninth version of the Xen design) and the one with `disk` and
 * `memory = PATH | "yes"` or `save` (the fourth), where a file that lists disks and says nothing of memory means none. Words `KEY=VALUE` of the
 * command line count as lines after the file's and replace what it says. Fails with CONFIG_INVALID; the message begins with file and line.
 */
export function parseSnapshotFile(text: string, file: string, words: readonly string[] = []): SnapshotWishes {
  const settings = new Map<string, Setting>();
  for (const setting of readSettings(text, file)) {
    const before = settings.get(setting.key);
    if (before !== undefined)
      throw invalid(setting, `${setting.key} once`, `it again, after ${before.place}`);
    settings.set(setting.key, setting);
  }
  for (const word of words) {
    const setting = readWord(word);
    settings.set(setting.key, setting);
  }
  return interpret(settings);
}

/** In the form with `disks`; what was not said is not written. Kinds of single disks other than external and internal cannot be. */
export function printSnapshotFile(wishes: SnapshotWishes): string {
  const lines: string[] = [];
  const add = (key: string, value: string): void => void lines.push(`${key} = ${value}`);
  if (wishes.name !== undefined) add("name", quote(wishes.name));
  if (wishes.description !== undefined) add("description", quote(wishes.description));
  if (wishes.memory !== undefined) add("memory", wishes.memory ? "1" : "0");
  if (wishes.memoryPath !== undefined) add("memory_path", quote(wishes.memoryPath));
  if (wishes.disks !== undefined) {
    const disks = wishes.disks.map(({ disk, kind, overlay }) =>
      quote(kind === "internal" ? `,,${disk}` : `${overlay ?? ""},qcow2,${disk}`),
    );
    add("disks", `[ ${disks.join(", ")} ]`);
  }
  return lines.map((line) => `${line}\n`).join("");
}

type Value = string | number | readonly string[];

interface Setting {
  readonly key: string;
  readonly value: Value;
  /** `FILE:LINE` or the argument. */
  readonly place: string;
}

function interpret(settings: ReadonlyMap<string, Setting>): SnapshotWishes {
  for (const [key, setting] of settings) {
    if (!KEYS.includes(key)) throw invalid(setting, `one of ${KEYS.join(", ")}`, key);
  }
  const [v4, v9] = [settings.get("disk"), settings.get("disks")];
  if (v4 !== undefined && v9 !== undefined) throw invalid(v4, "either disk or disks", "both");
  const name = settings.get("name");
  const description = settings.get("description");
  const disks =
    v9 === undefined ? v4 && checked(v4, list).map(diskOfV4(v4)) : checked(v9, list).map(diskOfV9(v9));
  return {
    ...(name === undefined || name.value === ""
      ? {}
      : { name: checked(name, (value) => checkName("domain snapshot", String(value))) }),
    ...(description === undefined ? {} : { description: checked(description, string) }),
    ...memoryOf(settings),
    ...(disks === undefined ? {} : { disks }),
  };
}

/** `creationtime` is never set by a user: it is in files that describe snapshots. */
const KEYS = ["name", "description", "memory", "memory_path", "save", "disks", "disk", "creationtime"];

function memoryOf(settings: ReadonlyMap<string, Setting>): Pick<SnapshotWishes, "memory" | "memoryPath"> {
  const path = settings.get("memory_path");
  const [memory, save] = [settings.get("memory"), settings.get("save")];
  if (memory !== undefined && save !== undefined)
    throw invalid(save, "either memory or save, which mean the same", "both");
  const wish = memory ?? save;
  const memoryPath =
    path === undefined || path.value === ""
      ? {}
      : { memoryPath: checked(path, (value) => filePath(string(value))) };
  if (wish === undefined) {
    const none = settings.has("disk") && path === undefined ? { memory: false } : {};
    return "memoryPath" in memoryPath ? { memory: true, ...memoryPath } : none;
  }
  switch (wish.value) {
    case 0:
    case "0":
    case "no":
      if ("memoryPath" in memoryPath)
        throw invalid(wish, "memory, since memory_path says where", String(wish.value));
      return { memory: false };
    case 1:
    case "1":
    case "yes":
      return { memory: true, ...memoryPath };
    default: {
      const given = checked(wish, (value) => filePath(string(value)));
      if ("memoryPath" in memoryPath && memoryPath.memoryPath !== given) {
        throw invalid(wish, `the memory_path ${memoryPath.memoryPath}`, given);
      }
      return { memory: true, memoryPath: given };
    }
  }
}

/** `path,format,target`; the path may have commas. */
function diskOfV9(setting: Setting): (text: string) => WishedDisk {
  return (text) =>
    checked(setting, () => {
      const [, path, format, disk] = /^(.*),([^,]*),([^,]+)$/.exec(text) ?? [];
      if (path === undefined || format === undefined || disk === undefined) {
        throw wrong("'path,format,target', or ',,target' for an internal snapshot", text);
      }
      checkDisk(disk);
      if (path === "" && format === "") return { disk, kind: "internal" };
      return { disk, kind: "external", ...overlay(path, format) };
    });
}

/** `target=path,type=format` */
function diskOfV4(setting: Setting): (text: string) => WishedDisk {
  return (text) =>
    checked(setting, () => {
      const [, disk, path, format] = /^([^=,]+)=(.*?)(?:,type=([^,]*))?$/.exec(text) ?? [];
      if (disk === undefined || path === undefined) throw wrong("'target=path,type=qcow2'", text);
      checkDisk(disk);
      if (path === "") return { disk, kind: "internal" };
      return { disk, kind: "external", ...overlay(path, format ?? "qcow2") };
    });
}

function overlay(path: string, format: string): Pick<WishedDisk, "overlay"> {
  if (format !== "qcow2") throw wrong("the format qcow2, for the new file has the old one below it", format);
  return path === "" ? {} : { overlay: filePath(path) };
}

function checkDisk(disk: string): void {
  if (disk.startsWith("/")) filePath(disk);
  else checkName("disk", disk);
}

function filePath(path: string): string {
  return checkFilePath("a file of the snapshot", path);
}

function string(value: Value): string {
  if (typeof value === "string") return value;
  throw wrong("a string in quotes", JSON.stringify(value));
}

function list(value: Value): readonly string[] {
  if (Array.isArray(value)) return value as readonly string[];
  throw wrong("a list in brackets", JSON.stringify(value));
}

/** Puts the place before what a check says. */
function checked<T>(setting: Setting, check: (value: Value) => T): T {
  try {
    return check(setting.value);
  } catch (cause) {
    throw new FleeceError("CONFIG_INVALID", `${setting.place}: ${setting.key}: ${errorMessage(cause)}`, {
      cause,
    });
  }
}

function wrong(expected: string, got: string): FleeceError {
  return new FleeceError("CONFIG_INVALID", `Expected ${expected}, got ${JSON.stringify(got)}`);
}

function invalid({ place }: Pick<Setting, "place">, expected: string, got: string): FleeceError {
  return new FleeceError("CONFIG_INVALID", `${place}: Expected ${expected}, got ${got}`);
}

const TOKEN =
  /(?<space>[ \t\r]+|#[^\n]*)|(?<end>[\n;])|(?<word>[A-Za-z_][A-Za-z0-9_]*)|(?<number>-?\d+)|(?<string>"[^"\n]*"|'[^'\n]*')|(?<sign>[=[\],])/y;

/** All but white space and comments. */
const TOKEN_KINDS = ["end", "word", "number", "string", "sign"] as const;

interface Token {
  readonly kind: (typeof TOKEN_KINDS)[number];
  readonly text: string;
  readonly line: number;
}

function tokens(text: string, file: string): readonly Token[] {
  const found: Token[] = [];
  let line = 1;
  for (let position = 0; position < text.length;) {
    TOKEN.lastIndex = position;
    const match = TOKEN.exec(text);
    if (match?.groups === undefined) {
      const rest = text.slice(position).split("\n", 1)[0] ?? "";
      throw invalid(
        { place: `${file}:${line}` },
        "KEY = VALUE with strings in quotes",
        JSON.stringify(rest.slice(0, 60)),
      );
    }
    position = TOKEN.lastIndex;
    const { groups } = match;
    const kind = TOKEN_KINDS.find((each) => groups[each] !== undefined);
    if (kind !== undefined) found.push({ kind, text: match[0], line });
    if (match[0] === "\n") line += 1;
  }
  return [...found, { kind: "end", text: "", line }];
}

/** A shell has taken the quotes of a string away, maybe. */
function readWord(word: string): Setting {
  const place = `argument ${word}`;
  const [, key, value] = /^\s*([A-Za-z_]\w*)\s*=\s*(.*?)\s*$/s.exec(word) ?? [];
  if (key === undefined || value === undefined) throw invalid({ place }, "KEY=VALUE", JSON.stringify(word));
  if (!/^(["'[]|-?\d+$)/.test(value)) return { key, value, place };
  const [setting, second] = readSettings(word, place);
  if (setting !== undefined && second === undefined) return { ...setting, place };
  throw invalid({ place }, "one KEY=VALUE", JSON.stringify(word));
}

/** One setting after the other; a list may go over several lines. */
function readSettings(text: string, file: string): readonly Setting[] {
  const all = tokens(text, file);
  let next = 0;
  const settings: Setting[] = [];
  const take = (): Token => all[next++] ?? { kind: "end", text: "", line: 0 };
  const expect = (expected: string, test: (token: Token) => boolean): Token => {
    const token = take();
    if (test(token)) return token;
    throw unexpected(token, file, expected);
  };
  const takeInList = (): Token => {
    for (;;) {
      const token = take();
      if (token.text !== "\n") return token;
    }
  };
  while (next < all.length) {
    if (all[next]?.kind === "end") {
      next += 1;
      continue;
    }
    const key = expect("a key", ({ kind }) => kind === "word");
    const place = `${file}:${key.line}`;
    expect("=", (token) => token.text === "=");
    const first = expect(
      "a value",
      (token) => ["number", "string"].includes(token.kind) || token.text === "[",
    );
    if (first.text !== "[") {
      settings.push({ key: key.text, value: scalar(first), place });
    } else {
      const values: string[] = [];
      let token = takeInList();
      while (token.text !== "]") {
        values.push(listed(token, file));
        token = takeInList();
        if (token.text === ",") token = takeInList();
        else if (token.text !== "]") throw unexpected(token, file, "a comma or ]");
      }
      settings.push({ key: key.text, value: values, place });
    }
    expect("the end of the line", ({ kind }) => kind === "end");
  }
  return settings;
}

function unexpected({ kind, text, line }: Token, file: string, expected: string): FleeceError {
  const got = kind === "end" ? "the end of the line" : text;
  return invalid({ place: `${file}:${line}` }, expected, got);
}

function listed(token: Token, file: string): string {
  if (token.kind === "string") return token.text.slice(1, -1);
  throw unexpected(token, file, "a string in quotes or ]");
}

function scalar({ kind, text }: Token): string | number {
  return kind === "number" ? Number(text) : text.slice(1, -1);
}

/** The form knows no escapes. */
function quote(text: string): string {
  if (!text.includes("\n") && !text.includes('"')) return `"${text}"`;
  if (!text.includes("\n") && !text.includes("'")) return `'${text}'`;
  throw new FleeceError(
    "INVALID_ARGUMENT",
    `Expected one line without both kinds of quotes, which such a file could not hold, got ${JSON.stringify(text)}`,
  );
}
