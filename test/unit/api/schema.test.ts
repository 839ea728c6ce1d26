import protobuf from "protobufjs";
import { describe, expect, it } from "vitest";
import { protoRoot } from "../../../src/api/proto.js";
import { breaks, describeSchema, readBaseline } from "../../schema/schema.js";

const OLD = `
  syntax = "proto3";
  package fleece.v1;
  enum Colour { COLOUR_UNSPECIFIED = 0; RED = 1; }
  message Thing {
    message Part { string name = 1; }
    int64 size = 1;
    optional string note = 2;
    repeated Part parts = 3;
    oneof step { Part first = 4; Part second = 5; }
    Colour colour = 6;
  }
  message Empty {}
  service Things {
    rpc Get(Empty) returns (Thing);
    rpc Watch(Empty) returns (stream Thing);
  }`;

const schemaOf = (text: string) => {
  const { root } = protobuf.parse(text);
  root.resolveAll();
  return describeSchema(root);
};

describe("the .proto files", () => {
  it("keep everything that clients depend on", async () => {
    expect(breaks(await readBaseline(), describeSchema(protoRoot()))).toEqual([]);
  });

  it("are wholly known to the baseline; after an addition: npm run schema:extend", async () => {
    expect(await readBaseline()).toEqual(describeSchema(protoRoot()));
  });
});

describe("breaks", () => {
  it("allows what is added", () => {
    const newer = OLD.replace("int64 size = 1;", "int64 size = 1; bool extra = 7; reserved 9;")
      .replace("RED = 1;", "RED = 1; BLUE = 2;")
      .replace("rpc Get", "rpc List(Empty) returns (Empty);\n rpc Get")
      .replace("message Empty {}", "message Empty {} message Other {}");
    expect(breaks(schemaOf(OLD), schemaOf(newer))).toEqual([]);
  });

  it.each<[string, string, string, RegExp]>([
    ["a field that is gone", "int64 size = 1;", "reserved 1;", /field fleece\.v1\.Thing\.size is gone/],
    ["a field with another name", "int64 size", "int64 length", /Thing\.size is gone/],
    ["a field with another number", "int64 size = 1", "int64 size = 8", /Thing\.size was .*"number":1/],
    ["a field with another type", "int64 size", "int32 size", /"type":"int64".*"type":"int32"/],
    ["a field of another message", "Part first", "Empty first", /Thing\.first was .*Thing\.Part.*Empty/],
    ["a field that became repeated", "int64 size", "repeated int64 size", /"plain".*"repeated"/],
    ["a field that is not repeated any more", "repeated Part parts", "Part parts", /"repeated".*"plain"/],
    ["a field that does not tell unset any more", "optional string", "string", /"optional".*"plain"/],
    ["a field that left its oneof", "Part second = 5; }", "} Part second = 5;", /Thing\.second was .*"step"/],
    [
      "an inner message that is gone",
      "message Part {",
      "message Piece {",
      /message fleece\.v1\.Thing\.Part is gone/,
    ],
    ["an enum value that is gone", "RED = 1;", "", /value fleece\.v1\.Colour\.RED is gone/],
    ["an enum value with another number", "RED = 1", "RED = 2", /Colour\.RED was 1 and is 2/],
    ["an enum that is gone", "enum Colour", "enum Color", /enum fleece\.v1\.Colour is gone/],
    [
      "a method that is gone",
      "rpc Get(Empty) returns (Thing);",
      "",
      /method fleece\.v1\.Things\.Get is gone/,
    ],
    ["a method with another request", "Get(Empty)", "Get(Thing)", /Things\.Get was .*Empty.*Thing/],
    ["a method with another response", "returns (Thing)", "returns (Empty)", /Things\.Get was/],
    ["a method that streams no more", "returns (stream Thing)", "returns (Thing)", /"response".*"neither"/],
    ["a method that takes a stream", "Watch(Empty)", "Watch(stream Empty)", /"response".*"both"/],
    ["a service that is gone", "service Things", "service Stuff", /service fleece\.v1\.Things is gone/],
    ["another package", "package fleece.v1", "package fleece.v2", /message fleece\.v1\.Thing is gone/],
  ])("notices %s", (_, from, to, problem) => {
    // What refers to a name follows it, so that the text still parses.
    const renamed = new Map([
      ["Piece", OLD.replaceAll("Part", "Piece")],
      ["Color", OLD.replaceAll("Colour", "Color")],
    ]);
    const name = [...renamed.keys()].find((key) => to.endsWith(`${key} {`) || to.endsWith(key));
    const newer = (name === undefined ? undefined : renamed.get(name)) ?? OLD.replace(from, to);
    expect(newer).not.toBe(OLD);
    expect(breaks(schemaOf(OLD), schemaOf(newer)).join("\n")).toMatch(problem);
  });
});
