import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  parseBlockExportXml,
  parseExportRequestXml,
  printBlockExportXml,
  printExportRequestXml,
} from "../../../../src/api/xml/block-export-xml.js";
import { parseBlockSnapshotXml, printBlockSnapshotXml } from "../../../../src/api/xml/block-snapshot-xml.js";
import { parseDomainXml, printDomainXml } from "../../../../src/api/xml/domain-xml.js";
import { decodeXml, readXml } from "../../../../src/api/xml/xml-reader.js";
import { FleeceError } from "../../../../src/shared/errors.js";
import { blockExport, domain, exportRequest, snapshot } from "./arbitraries.js";

function refusal(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    expect(error).toMatchObject({ code: "XML_INVALID" });
    return (error as Error).message;
  }
  throw new Error("Expected a refusal");
}

describe("readXml", () => {
  it("gives elements, attributes and text with their lines", () => {
    expect(readXml("<a\n x='1'\n y='&#10;&lt;é'>\n<b/>\n t&amp;<c>u</c></a>")).toEqual({
      name: "a",
      line: 1,
      attributes: new Map([
        ["x", { value: "1", line: 2 }],
        ["y", { value: "\n<é", line: 3 }],
      ]),
      children: [
        { name: "b", line: 4, attributes: new Map(), children: [], text: "" },
        { name: "c", line: 5, attributes: new Map(), children: [], text: "u", textLine: 5 },
      ],
      text: "\n\n t&",
      textLine: 5,
    });
  });

  it.each([
    ["nothing", "", /^Line 1.*got/],
    ["white space alone", " \n ", /^Line 2/],
    [
      "an attribute that comes twice",
      "<a\nx='1' x='2'/>",
      /^Line 2, column \d+: expected well-formed XML, got: duplicate attribute: x$/,
    ],
    ["mismatched tags", "<a><b>\n</a></b>", /^Line 2, column 4: .*unexpected close tag/],
    ["a tag that is not closed", "<a>\n<b/>", /^Line 2, column \d+: .*unclosed tag: a/],
    ["two documents", "<a/><b/>", /only one root/],
    ["text after the document", "<a/>x", /text data outside of root/],
    ["a control character", "<a>\u0001</a>", /disallowed character/],
    ["the number of a control character", "<a>&#1;</a>", /malformed character entity/],
    ["half a character", "<a>\ud800</a>", /^Line 1/],
    ["a bare <", "<a x='<'/>", /disallowed character/],
    ["a value without quotes", "<a x=1/>", /unquoted attribute value/],
    ["an & that begins nothing", "<a>\n\n1 & 2\n</a>", /^Line 3: expected one of &amp; .*, got "& 2"$/],
    ["an unknown entity", "<!-- & -->\n<a>&xxe;</a>", /^Line 2: expected one of &amp; .*, got "&xxe;<\/a>"$/],
    ["a DOCTYPE", "<!DOCTYPE a><a/>", /^Line 1: expected no DOCTYPE, got one$/],
    ["an external entity", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', /no DOCTYPE/],
    [
      "a processing instruction",
      "<a><?php x?></a>",
      /^Line 1: expected no processing instructions, got "php"$/,
    ],
    ["a namespace", "<a xmlns='urn:x'/>", /^Line 1: expected no namespaces, got the attribute xmlns$/],
    ["a prefixed attribute", "<a p:x='1'/>", /no namespaces/],
    ["a prefixed element", "<p:a/>", /^Line 1: expected no namespaces, got the element <p:a>$/],
    ["XML 1.1", "<?xml version='1.1'?><a/>", /^Line 1: expected XML version 1\.0, got "1\.1"$/],
    [
      "another encoding",
      "<?xml version='1.0' encoding='UTF-16'?><a/>",
      /^Line 1: expected the encoding UTF-8, got "UTF-16"$/,
    ],
  ])("refuses %s", (_, text, message) => {
    expect(refusal(() => readXml(text))).toMatch(message);
  });

  it("refuses an entity bomb without expanding it", () => {
    const entities = Array.from({ length: 20 }, (_, i) => `<!ENTITY e${i + 1} "${`&e${i};`.repeat(10)}">`);
    const bomb = `<!DOCTYPE a [<!ENTITY e0 "lol">\n${entities.join("\n")}]>\n<a>&e20;</a>`;
    expect(refusal(() => readXml(bomb))).toMatch(/expected no DOCTYPE, got one$/);
  });

  it("takes 16 levels, and refuses one more", () => {
    const nested = (depth: number) => "<a>".repeat(depth) + "</a>".repeat(depth);
    expect(readXml(nested(16)).name).toBe("a");
    expect(refusal(() => readXml(nested(17)))).toBe(
      "Line 1: expected elements at most 16 deep, got a deeper one",
    );
  });

  it("takes 10,000 elements, and refuses one more", () => {
    const wide = (count: number) => `<a>${"<b/>".repeat(count - 1)}</a>`;
    expect(readXml(wide(10_000)).children).toHaveLength(9999);
    expect(refusal(() => readXml(wide(10_001)))).toBe("Line 1: expected at most 10000 elements, got more");
  });

  it("takes 16 attributes, and refuses one more", () => {
    const attributed = (count: number) =>
      `<a ${Array.from({ length: count }, (_, i) => `x${i}='1'`).join(" ")}/>`;
    expect(readXml(attributed(16)).attributes.size).toBe(16);
    expect(refusal(() => readXml(attributed(17)))).toMatch(/at most 16 attributes/);
  });

  it("takes 1 MiB, and refuses one byte more, counted in UTF-8", () => {
    const long = (bytes: number) => `<a>é${" ".repeat(bytes - 9)}</a>`;
    expect(readXml(long(2 ** 20)).name).toBe("a");
    expect(refusal(() => readXml(long(2 ** 20 + 1)))).toMatch(/at most 1048576 bytes, got 1048577$/);
  });

  it("is not slow about a megabyte of any kind", () => {
    const fill = (unit: string, frame: (inner: string) => string = (inner) => inner) =>
      frame(unit.repeat(Math.floor((2 ** 20 - 20) / unit.length)));
    for (const text of [
      fill("&", (inner) => `<a>${inner}</a>`),
      fill("<!--", (inner) => `<a>${inner}&`),
      fill("<![CDATA[", (inner) => `<a>&${inner}`),
      fill("x", (inner) => `<a ${inner}`),
      fill("x", (inner) => `<${inner}`),
      fill("&#", (inner) => `<a>${inner}`),
      fill("<a", (inner) => inner),
      fill("\n", (inner) => `<a>${inner}&`),
      fill("]]>", (inner) => `<a>${inner}`),
    ]) {
      expect(refusal(() => readXml(text)).length).toBeLessThan(300);
    }
  });
});

describe("decodeXml", () => {
  it("takes UTF-8, with or without a mark at its start", () => {
    expect(decodeXml(Buffer.from("\ufeff<a>é</a>"))).toBe("<a>é</a>");
  });

  it.each([[0xff], [0xc3, 0x28], [0xed, 0xa0, 0x80], [0xfe, 0xff, 0, 0x3c]])("refuses %j", (...bytes) => {
    expect(refusal(() => decodeXml(Uint8Array.from(bytes)))).toMatch(/in UTF-8/);
  });

  it("refuses more than 1 MiB", () => {
    expect(refusal(() => decodeXml(new Uint8Array(2 ** 20 + 1)))).toMatch(/1048577/);
  });
});

const PARSERS = [parseBlockSnapshotXml, parseExportRequestXml, parseBlockExportXml, parseDomainXml];

/** Whatever it is, it is a document or it is refused. */
function parseAll(text: string): number {
  let accepted = 0;
  for (const parse of PARSERS) {
    try {
      parse(text);
      accepted += 1;
    } catch (error) {
      expect(error).toBeInstanceOf(FleeceError);
      expect(["XML_INVALID", "INVALID_NAME", "INVALID_ARGUMENT"]).toContain((error as FleeceError).code);
    }
  }
  return accepted;
}

describe("the parsers", () => {
  it("fail with coded errors alone for arbitrary bytes and text", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        parseAll(Buffer.from(bytes).toString("latin1"));
      }),
      { numRuns: 500 },
    );
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 100 }), (text) => void parseAll(text)),
      { numRuns: 500 },
    );
  });

  it("fail with coded errors alone for documents with some of their characters changed", () => {
    const documents = fc.oneof(
      snapshot.map((value) => printBlockSnapshotXml(value)),
      exportRequest.map(printExportRequestXml),
      blockExport.map(printBlockExportXml),
      domain.map(printDomainXml),
    );
    const piece = fc.oneof(
      fc.constantFrom(
        "",
        "<",
        ">",
        "/",
        "'",
        "&",
        ";",
        "=",
        "<!",
        "]]>",
        "<?",
        " ",
        "\0",
        "disk",
        "name",
        "<disk/>",
        "&#0;",
        ":",
      ),
      fc.string({ unit: "binary", maxLength: 2 }),
    );
    const change = fc.record({ at: fc.double({ min: 0, max: 1, noNaN: true }), removed: fc.nat(6), piece });
    let accepted = 0;
    fc.assert(
      fc.property(documents, fc.array(change, { maxLength: 3 }), (text, changes) => {
        const mutated = changes.reduce((before, { at, removed, piece: added }) => {
          const start = Math.floor(at * before.length);
          return before.slice(0, start) + added + before.slice(start + removed);
        }, text);
        accepted += parseAll(mutated);
      }),
      { numRuns: 1000 },
    );
    // Else the mutations are too coarse to come past the reader.
    expect(accepted).toBeGreaterThan(100);
  });
});
