import type { SaxesAttributeNS, SaxesAttributePlain } from "saxes";
import { SaxesParser } from "saxes";
import { FleeceError } from "../../shared/errors.js";
import { quoted, xmlError } from "./xml-error.js";

export interface XmlElement {
  readonly name: string;
  /** Where its start tag ends its name. */
  readonly line: number;
  readonly attributes: ReadonlyMap<string, XmlAttribute>;
  readonly children: readonly XmlElement[];
  /** All of its own text together. */
  readonly text: string;
  /** Of the first text that is more than white space. */
  readonly textLine?: number;
}

export interface XmlAttribute {
  readonly value: string;
  readonly line: number;
}

/** Far beyond any document of ours; what a parser has to hold stays small, whoever sends it. */
export const MAX_XML_BYTES = 1024 * 1024;
const LIMITS = { bytes: MAX_XML_BYTES, depth: 16, elements: 10_000, attributesPerElement: 16 };

/** UTF-8 to text. Fails with XML_INVALID. */
export function decodeXml(bytes: Uint8Array): string {
  if (bytes.length > LIMITS.bytes) throw tooLong(bytes.length);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new FleeceError("XML_INVALID", "Expected an XML document in UTF-8, got bytes that are not UTF-8", {
      cause,
    });
  }
}

/**
 * Reads a document whole, without knowing what it is about: elements, attributes and text with their lines. Comments are left out.
 * DOCTYPE (and so entities other than the five of XML), processing instructions and namespaces are refused, and so is
 * whatever exceeds LIMITS. Fails with XML_INVALID.
 */
export function readXml(text: string): XmlElement {
  const bytes = Buffer.byteLength(text);
  if (bytes > LIMITS.bytes) throw tooLong(bytes);
  const reader = new TreeReader(text);
  return reader.root();
}

interface OpenElement extends XmlElement {
  readonly attributes: Map<string, XmlAttribute>;
  readonly children: XmlElement[];
  text: string;
  textLine?: number;
}

class TreeReader {
  readonly #text: string;
  // It checks well-formedness in full, and its events come with positions while the limits still help.
  readonly #parser = new SaxesParser({ position: true, forceXMLVersion: true, defaultXMLVersion: "1.0" });
  readonly #open: OpenElement[] = [];
  #root: XmlElement | undefined;
  #elements = 0;

  constructor(text: string) {
    this.#text = text;
  }

  root(): XmlElement {
    const parser = this.#parser;
    parser.on("error", (error) => this.#fail(error));
    parser.on("xmldecl", (declaration) => this.#checkDeclaration(declaration));
    parser.on("doctype", () => {
      throw xmlError(parser.line, "no DOCTYPE", "one");
    });
    parser.on("processinginstruction", ({ target }) => {
      throw xmlError(parser.line, "no processing instructions", quoted(target));
    });
    parser.on("opentagstart", ({ name }) => this.#start(name));
    parser.on("attribute", (attribute) => this.#attribute(attribute));
    parser.on("text", (data) => this.#addText(data));
    parser.on("cdata", (data) => this.#addText(data));
    parser.on("closetag", () => {
      this.#open.pop();
    });
    parser.write(this.#text).close();
    if (this.#root !== undefined) return this.#root;
    throw xmlError(parser.line, "an XML document", "nothing");
  }

  #start(name: string): void {
    const parser = this.#parser;
    // The parser has seen one character more.
    const line = parser.columnIndex === 0 ? parser.line - 1 : parser.line;
    if (name.includes(":")) throw xmlError(line, "no namespaces", `the element <${cut(name)}>`);
    if (this.#open.length === LIMITS.depth) {
      throw xmlError(line, `elements at most ${LIMITS.depth} deep`, "a deeper one");
    }
    this.#elements += 1;
    if (this.#elements > LIMITS.elements) {
      throw xmlError(line, `at most ${LIMITS.elements} elements`, "more");
    }
    const element: OpenElement = { name, line, attributes: new Map(), children: [], text: "" };
    const parent = this.#open.at(-1);
    if (parent === undefined) this.#root = element;
    else parent.children.push(element);
    this.#open.push(element);
  }

  #attribute({ name, value }: Pick<SaxesAttributePlain | SaxesAttributeNS, "name" | "value">): void {
    const { line } = this.#parser;
    const element = this.#open.at(-1);
    if (element === undefined) return;
    if (name === "xmlns" || name.includes(":")) {
      throw xmlError(line, "no namespaces", `the attribute ${cut(name)}`);
    }
    if (element.attributes.size === LIMITS.attributesPerElement) {
      throw xmlError(line, `at most ${LIMITS.attributesPerElement} attributes of an element`, "more");
    }
    element.attributes.set(name, { value, line });
  }

  #addText(data: string): void {
    const element = this.#open.at(-1);
    if (element === undefined) return;
    element.text += data;
    const visible = data.trimStart();
    // The parser is at the end of the text.
    if (visible !== "") element.textLine ??= this.#parser.line - (visible.split("\n").length - 1);
  }

  #checkDeclaration({ version, encoding }: { version?: string; encoding?: string }): void {
    const { line } = this.#parser;
    if (version !== "1.0") throw xmlError(line, "XML version 1.0", quoted(version ?? ""));
    if (encoding === undefined || /^(utf-8|us-ascii)$/i.test(encoding)) return;
    throw xmlError(line, "the encoding UTF-8", quoted(encoding));
  }

  #fail({ message }: Error): never {
    const [, line, column, reason] = /^(\d+):(\d+): (.*?)\.?$/s.exec(message) ?? [];
    const at = Number(line ?? this.#parser.line);
    const ampersand = bareAmpersand(this.#text);
    if (ampersand !== undefined && ampersand.line <= at) {
      throw xmlError(
        ampersand.line,
        "one of &amp; &lt; &gt; &quot; &apos; or a number",
        quoted(ampersand.text),
      );
    }
    throw new FleeceError(
      "XML_INVALID",
      `Line ${at}, column ${column ?? "unknown"}: expected well-formed XML, got: ${cut(reason ?? message)}`,
      { facts: { line: at } },
    );
  }
}

/** The parser looks for the end of a reference, far away if there is none, and complains only there. */
function bareAmpersand(text: string): { readonly line: number; readonly text: string } | undefined {
  const visible = text.replaceAll(/<!--.*?(?:-->|$)|<!\[CDATA\[.*?(?:\]\]>|$)/gs, (hidden) =>
    hidden.replaceAll(/[^\n]/g, " "),
  );
  const found = /&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[\da-f]+);)/i.exec(visible);
  if (found === null) return undefined;
  return {
    line: visible.slice(0, found.index).split("\n").length,
    text: /^.{1,20}/.exec(text.slice(found.index))?.[0] ?? "",
  };
}

function tooLong(bytes: number): FleeceError {
  return new FleeceError(
    "XML_INVALID",
    `Expected an XML document of at most ${LIMITS.bytes} bytes, got ${bytes}`,
  );
}

function cut(text: string): string {
  return quoted(text).slice(1, -1).replaceAll('\\"', '"');
}
