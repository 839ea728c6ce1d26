import protobuf from "protobufjs";
import { describe, expect, it } from "vitest";
import { backupMessage } from "../../../src/api/backups.js";
import { messageToJson, messageToText, toJson } from "../../../src/api/json.js";
import { protoRoot } from "../../../src/api/proto.js";

const { root } = protobuf.parse(`
  syntax = "proto3";
  import "google/protobuf/timestamp.proto";
  message Inner { string text = 1; }
  message Sample {
    enum Colour { COLOUR_UNSPECIFIED = 0; RED = 1; }
    string name = 1;
    int64 big_size = 2;
    int32 small = 3;
    bool flag = 4;
    Colour colour = 5;
    repeated Inner inner_list = 6;
    Inner single = 7;
    optional string maybe = 8;
    google.protobuf.Timestamp some_time = 9;
    repeated Colour colours = 10;
  }`);
root.addJSON(protobuf.common.get("google/protobuf/timestamp.proto")?.nested ?? {});
root.resolveAll();
const sample = root.lookupType("Sample");
const print = (value: unknown) => messageToJson(sample, value, "Sample");
const DEFAULTS = {
  name: "",
  bigSize: "0",
  small: 0,
  flag: false,
  colour: "COLOUR_UNSPECIFIED",
  innerList: [],
  colours: [],
};

describe("messageToJson", () => {
  it("prints every field with its default, except unset optional and message fields", () => {
    expect(print({})).toEqual(DEFAULTS);
    expect(print({ maybe: undefined, single: undefined })).toEqual(DEFAULTS);
  });

  it("prints set fields in the order of the definition, under lowerCamelCase names", () => {
    const value = {
      maybe: "",
      colours: ["RED"],
      innerList: [{ text: "a" }, {}],
      colour: "RED",
      small: -1,
      flag: true,
    };
    expect(print(value)).toEqual({
      ...DEFAULTS,
      small: -1,
      flag: true,
      colour: "RED",
      innerList: [{ text: "a" }, { text: "" }],
      maybe: "",
      colours: ["RED"],
    });
    expect(Object.keys(print(value) as object).slice(0, 3)).toEqual(["name", "bigSize", "small"]);
  });

  it("prints 64-bit integers as strings, whether they come as numbers or as strings", () => {
    expect(print({ bigSize: Number.MAX_SAFE_INTEGER })).toMatchObject({ bigSize: "9007199254740991" });
    expect(print({ bigSize: "9223372036854775807" })).toMatchObject({ bigSize: "9223372036854775807" });
  });

  it.each([
    [{ seconds: 0, nanos: 0 }, "1970-01-01T00:00:00Z"],
    [{ seconds: "1795258380", nanos: 250_000_000 }, "2026-11-21T10:53:00.250Z"],
    [{ seconds: -1, nanos: 1_000 }, "1969-12-31T23:59:59.000001Z"],
    [{ seconds: 253_402_300_799, nanos: 999_999_999 }, "9999-12-31T23:59:59.999999999Z"],
  ])("prints the Timestamp %j as RFC 3339", (someTime, text) => {
    expect(print({ someTime })).toMatchObject({ someTime: text });
  });

  it.each<[string, unknown, RegExp]>([
    ["an unknown field", { nmae: "x" }, /only fields of Sample at Sample\.nmae/],
    ["an unknown field of an inner message", { innerList: [{ txet: "x" }] }, /Sample\.innerList\[0\]\.txet/],
    ["an unknown enum name", { colour: "BLUE" }, /enum Colour at Sample\.colour, got BLUE/],
    ["an enum name that objects inherit", { colour: "toString" }, /enum Colour/],
    ["a number for a string", { name: 1 }, /type string at Sample\.name, got 1/],
    ["a fraction for an integer", { small: 1.5 }, /type int32/],
    ["an integer that a number cannot hold", { bigSize: 2 ** 53 }, /type int64/],
    ["words for an integer", { bigSize: "many" }, /type int64/],
    ["one value for a list", { innerList: { text: "a" } }, /an array at Sample\.innerList/],
    ["null", { maybe: null }, /type string at Sample\.maybe, got null/],
    ["a time out of range", { someTime: { seconds: 253_402_300_800, nanos: 0 } }, /seconds from the year 1/],
    ["a time that is none", { someTime: { seconds: Number.NaN, nanos: 0 } }, /seconds from the year 1/],
    ["too many nanoseconds", { someTime: { seconds: 0, nanos: 1e9 } }, /nanoseconds/],
    ["no object", "text", /an object of type Sample/],
  ])("fails with INTERNAL for %s", (_, value, message) => {
    expect(() => print(value)).toThrow(
      expect.objectContaining({ code: "INTERNAL", message: expect.stringMatching(message) as unknown }),
    );
  });
});

describe("toJson", () => {
  it("tells a damaged backup by its place and damage alone", () => {
    const backup = backupMessage({ id: "b", repository: "r", domain: "d", damage: "the manifest is torn" });
    expect(toJson("Backup", backup)).toMatchObject({
      id: "b",
      level: "LEVEL_UNSPECIFIED",
      heldMs: "0",
      disks: [],
      damage: "the manifest is torn",
    });
    expect(toJson("Backup", backup)).not.toHaveProperty("time");
  });

  it("prints an empty list as one", () => {
    expect(toJson("ListBackupsResponse", { backups: [] })).toEqual({ backups: [] });
  });

  it("prints text that ends with a newline", () => {
    expect(messageToText("ListDomainsResponse", { domains: [] })).toBe('{\n  "domains": []\n}\n');
  });
});

describe("the .proto files", () => {
  it("give every enum a zero value that means unset", () => {
    const enums: protobuf.Enum[] = [];
    const visit = (space: protobuf.NamespaceBase): void => {
      for (const item of space.nestedArray) {
        if (item instanceof protobuf.Enum) enums.push(item);
        else if (item instanceof protobuf.Namespace) visit(item);
      }
    };
    visit(protoRoot().lookup("fleece.v1") as protobuf.Namespace);
    expect(enums.length).toBeGreaterThan(3);
    for (const { valuesById } of enums) expect(valuesById[0]).toMatch(/_UNSPECIFIED$/);
  });
});
