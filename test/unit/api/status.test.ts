import { Metadata, status } from "@grpc/grpc-js";
import { describe, expect, it } from "vitest";
import { fromStatus, statusCodeOf, toStatus } from "../../../src/api/status.js";
import { ERROR_CODES, FleeceError, type ErrorCode } from "../../../src/shared/errors.js";

const codes = Object.keys(ERROR_CODES) as ErrorCode[];

describe("toStatus and fromStatus", () => {
  it.each(codes)("take %s over with its words and facts", (code) => {
    const facts = {
      text: "web01",
      looksLikeJson: "123",
      quoted: '"x"',
      count: 3,
      flag: false,
      list: ["a", "1"],
    };
    const sent = toStatus(new FleeceError(code, "Disk vda is in use: 'é'", { facts }));
    expect(sent.code).not.toBe(status.OK);
    const received = fromStatus(sent);
    expect(received).toMatchObject({ code, message: "Disk vda is in use: 'é'", facts });
  });

  it("send no stack and no cause", () => {
    const cause = new Error("secret cause");
    const { details, metadata } = toStatus(new FleeceError("INTERNAL", "It broke", { cause }));
    const bytes = Buffer.concat(metadata.get("grpc-status-details-bin").map((value) => Buffer.from(value)));
    expect(details).toBe("It broke");
    expect(bytes.toString("latin1")).not.toMatch(/secret|status\.test/);
  });

  it("stay below the size of trailers that clients take", () => {
    const facts = { short: "kept", long: "x".repeat(100_000) };
    const { details, metadata } = toStatus(new FleeceError("QEMU_FAILED", "y".repeat(100_000), { facts }));
    const [bytes] = metadata.get("grpc-status-details-bin");
    expect(details.length + (bytes?.length ?? 0)).toBeLessThan(12_000);
    expect(fromStatus({ details, metadata })?.facts).toEqual({ short: "kept" });
  });

  it("leave alone what other programs say, and what is no status at all", () => {
    const metadata = new Metadata();
    expect(fromStatus({ details: "", metadata })).toBeUndefined();
    metadata.set("grpc-status-details-bin", Buffer.from([255, 255, 1]));
    expect(fromStatus({ details: "", metadata })).toBeUndefined();
  });
});

describe("statusCodeOf", () => {
  it.each<[ErrorCode, number]>([
    ["INVALID_NAME", status.INVALID_ARGUMENT],
    ["BACKUP_NOT_FOUND", status.NOT_FOUND],
    ["ALREADY_EXISTS", status.ALREADY_EXISTS],
    ["DOMAIN_BUSY", status.ABORTED],
    ["BACKUP_HAS_CHILDREN", status.FAILED_PRECONDITION],
    ["DOMAIN_UNREACHABLE", status.UNAVAILABLE],
    ["DAMAGED", status.DATA_LOSS],
    ["INTERNAL", status.INTERNAL],
  ])("gives %s the status %i", (code, expected) => {
    expect(statusCodeOf(new FleeceError(code, ""))).toBe(expected);
  });
});
