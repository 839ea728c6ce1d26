import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeCommand, parseMessage } from "../../../src/qmp/messages.js";
import { failureOf, greetingLine } from "./fake-server.js";

describe("parseMessage", () => {
  it("reads a greeting", () => {
    const version = { major: 7, minor: 2, micro: 22, package: "fake" };
    expect(parseMessage(greetingLine)).toEqual({ kind: "greeting", version });
  });

  it("reads an event without data", () => {
    const timestamp = { seconds: 1, microseconds: 2 };
    const event = { event: "STOP", data: {}, timestamp };
    expect(parseMessage(JSON.stringify({ event: "STOP", timestamp }))).toEqual({ kind: "event", event });
  });

  it("reads replies with and without an id", () => {
    expect(parseMessage('{"return": null, "id": "7"}')).toEqual({ kind: "return", value: null, id: "7" });
    expect(parseMessage('{"error": {"class": "C", "desc": "text"}}')).toEqual({
      kind: "error",
      id: undefined,
      qmpClass: "C",
      text: "text",
    });
  });

  it.each([
    ["what is no JSON", "SSH-2.0-OpenSSH_9.2", "expected a line of JSON"],
    ["an array", "[]", "expected a JSON object"],
    ["null", "null", "expected a JSON object"],
    ["an unknown kind of message", '{"x": 1}', "expected a greeting, reply or event"],
    ["an error without text", '{"error": {"class": "C"}}', "expected an error"],
    ["an event without a timestamp", '{"event": "STOP"}', "expected an event"],
    ["an event whose data is no object", '{"event": "X", "data": 1, "timestamp": {}}', "expected an event"],
    ["a greeting without a version", '{"QMP": {}}', "expected a greeting"],
    [
      "a greeting with an odd version",
      '{"QMP": {"version": {"qemu": {"major": -1, "minor": 0, "micro": 0}}}}',
      "expected a greeting",
    ],
  ])("calls %s invalid, and says what was expected", (_, text, reason) => {
    expect(parseMessage(text)).toMatchObject({
      kind: "invalid",
      reason: expect.stringContaining(reason) as unknown,
    });
  });

  it("never throws, whatever a line holds", () => {
    fc.assert(fc.property(fc.oneof(fc.string(), fc.json()), (text) => void parseMessage(text)));
  });

  it("quotes only the beginning of a long line", () => {
    const message = parseMessage("x".repeat(100_000));
    expect(JSON.stringify(message).length).toBeLessThan(300);
  });
});

describe("encodeCommand", () => {
  it("writes one line, whatever the arguments hold", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (value) => {
        const line = encodeCommand("1", "stop", { value });
        expect(line.endsWith("\r\n")).toBe(true);
        expect(line.slice(0, -2)).not.toMatch(/[\r\n]/);
        expect(JSON.parse(line)).toEqual({ execute: "stop", arguments: { value }, id: "1" });
      }),
    );
  });

  it.each([2 ** 53, -(2 ** 53), Number.NaN, Number.POSITIVE_INFINITY])(
    "refuses %d, which would reach QEMU as another number",
    async (size) => {
      const failure = await failureOf(
        Promise.resolve().then(() => encodeCommand("1", "blockdev-add", { options: { size } })),
      );
      expect(failure).toMatchObject({ code: "QMP_ARGUMENT", command: "blockdev-add" });
    },
  );

  it("accepts the largest safe integer and fractions", () => {
    expect(encodeCommand("1", "c", { a: Number.MAX_SAFE_INTEGER, b: 0.5 })).toContain("9007199254740991");
  });
});
