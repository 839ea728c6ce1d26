import { FleeceError } from "../../shared/errors.js";
import { quoted } from "./xml-error.js";

export interface XmlNode {
  readonly name: string;
  /** In this order; those that are undefined are left out. */
  readonly attributes?: Readonly<Record<string, string | undefined>>;
  readonly children?: readonly XmlNode[];
  /** Instead of children. */
  readonly text?: string;
}

/** Same value, same text: two spaces a level, attributes in single quotes, a newline at the end. */
export function printXml(node: XmlNode): string {
  return `${lines(node, "").join("\n")}\n`;
}

function lines({ name, attributes = {}, children = [], text }: XmlNode, indent: string): string[] {
  const written = Object.entries(attributes).flatMap(([key, value]) =>
    value === undefined ? [] : [` ${key}='${escape(value)}'`],
  );
  const start = `${indent}<${name}${written.join("")}`;
  if (text !== undefined) return [`${start}>${escape(text)}</${name}>`];
  if (children.length === 0) return [`${start}/>`];
  return [`${start}>`, ...children.flatMap((child) => lines(child, `${indent}  `)), `${indent}</${name}>`];
}

/** What XML 1.0 cannot hold, in whatever spelling. */
const IMPOSSIBLE = /[^\t\n\r\u{20}-\u{D7FF}\u{E000}-\u{FFFD}\u{10000}-\u{10FFFF}]/u;

const ESCAPES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  "'": "&apos;",
  '"': "&quot;",
};

/** White space as numbers: a parser would make plain spaces of it, or one newline of two characters. */
function escape(value: string): string {
  if (IMPOSSIBLE.test(value)) {
    throw new FleeceError("XML_INVALID", `Expected characters that XML can hold, got ${quoted(value)}`);
  }
  return value.replaceAll(/[&<>'"\t\n\r]/g, (found) => ESCAPES[found] ?? `&#${found.charCodeAt(0)};`);
}
