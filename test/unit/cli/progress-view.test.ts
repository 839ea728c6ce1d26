import { describe, expect, it } from "vitest";
import { createLogger } from "../../../src/cli/logger.js";
import { ProgressView } from "../../../src/cli/progress-view.js";
import { Rate } from "../../../src/cli/rate.js";

function screen(isTTY: boolean) {
  const written: string[] = [];
  const stream = { isTTY, columns: 100, write: (text: string) => void written.push(text) };
  return { stream, text: () => written.join("") };
}

const MIB = 1024 * 1024;
const started = {
  started: {
    level: "FULL",
    reason: "a full was asked for",
    disks: [
      { target: "vda", sizeBytes: 4 * MIB },
      { target: "sdb1", sizeBytes: 0 },
    ],
  },
} as const;

describe("ProgressView", () => {
  it("shows each disk's part, with what was read and stored, on a terminal", () => {
    const { stream, text } = screen(true);
    const view = new ProgressView(stream);
    view.show(started);
    view.show({ disk: { target: "vda", positionBytes: 3 * MIB, readBytes: 2 * MIB, storedBytes: MIB } });
    view.show({ disk: { target: "vda", positionBytes: MIB, readBytes: 2 * MIB, storedBytes: MIB } });
    view.show({ scratch: { usedBytes: MIB, limitBytes: 10 * MIB } });
    view.log.write("a line of the log\n");
    view.stop();
    expect(text()).toContain("Full backup: a full was asked for\n");
    expect(text()).toMatch(/vda {3}█{18}░{6} {2}75% {2}read 2 MiB, stored 1 MiB/);
    expect(text()).toContain("Scratch space: 1 MiB of 10 MiB");
    expect(text()).toMatch(/sdb1 {2}[█░]{24} /);
    expect(text()).toContain("a line of the log\n");
  });

  it("prints nothing where there is no terminal", () => {
    const { stream, text } = screen(false);
    const view = new ProgressView(stream);
    view.show(started);
    view.show({ disk: { target: "vda", positionBytes: MIB, readBytes: 0, storedBytes: 0 } });
    view.stop();
    expect(text()).toBe("");
  });

  it("shows nothing any more once it is stopped, and gives the terminal back", () => {
    const { stream, text } = screen(true);
    const view = new ProgressView(stream);
    view.show(started);
    view.stop();
    expect(text()).toContain("\u001b[?25h");
    const before = text();
    view.show({ disk: { target: "vda", positionBytes: MIB, sizeBytes: 4 * MIB } });
    view.stop();
    expect(text()).toBe(before);
  });
});

describe("Rate", () => {
  it("is unknown at first, then follows the last seconds", () => {
    const rate = new Rate();
    expect(rate.at(0, 0)).toBeUndefined();
    expect(rate.at(400, 100)).toBeUndefined();
    expect(rate.at(1000, 1000)).toBe(1000);
    for (let second = 2; second <= 10; second++) rate.at(second * 1000, second * 1000);
    expect(rate.at(11_000, 20_000)).toBeGreaterThan(3000);
  });
});

describe("createLogger", () => {
  it("writes one JSON object per line where there is no terminal", async () => {
    const { stream, text } = screen(false);
    const log = await createLogger("info", stream);
    log.debug({}, "hidden");
    log.info({ domain: "vm" }, "Seen");
    expect(JSON.parse(text())).toEqual({
      level: "info",
      time: expect.stringMatching(/^\d{4}-.*Z$/) as unknown,
      domain: "vm",
      msg: "Seen",
    });
  });

  it("writes lines for people on a terminal", async () => {
    const { stream, text } = screen(true);
    (await createLogger("info", stream)).warn({ domain: "vm" }, "Seen");
    expect(text()).toMatch(/WARN.*Seen/s);
    expect(text()).not.toContain('{"');
  });
});
