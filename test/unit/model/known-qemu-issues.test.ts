import { describe, expect, it } from "vitest";
import { cbwTimeoutSeconds } from "../../../src/model/known-qemu-issues.js";

describe("cbwTimeoutSeconds", () => {
  it.each([
    ["7.2.22", 1000, 1],
    ["7.2.22", 4000, 4],
    ["7.2.22", 5000, 4],
    ["9.0.4", 600_000, 4],
    ["9.1.0", 5000, 5],
    ["10.0.0", 600_000, 600],
  ])("gives QEMU %s for %i ms %i s, which is what it will wait", (version, wantedMs, seconds) => {
    expect(cbwTimeoutSeconds(version, wantedMs)).toBe(seconds);
  });
});
