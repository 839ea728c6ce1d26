import { pino } from "pino";
import { describe, expect, it } from "vitest";
import { ServiceManager } from "../../../src/cli/service-manager.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { ManualClock } from "../../support/manual-clock.js";
import { notifySocket } from "../../support/notify-socket.js";

const LIMIT_MS = 90_000;

/** An agent that systemd gives so long between two signs of life. */
async function watched(more: Readonly<Record<string, string>> = {}) {
  const { path } = await temporaryDirectory();
  const systemd = await notifySocket(`${path}/notify`);
  const watchdog = { NOTIFY_SOCKET: systemd.path, WATCHDOG_USEC: String(LIMIT_MS * 1000), ...more };
  const manager = new ServiceManager({ ...process.env, ...watchdog }, pino({ level: "silent" }));
  const clock = new ManualClock();
  const alive = untilTestEnds(manager.keepAlive(clock));
  const signs = (): number => systemd.words().filter((word) => word === "WATCHDOG=1").length;
  return { manager, systemd, clock, alive, signs };
}

describe("ServiceManager.keepAlive", () => {
  it("says at once and then within half of systemd's time that the agent lives, until it is disposed of", async () => {
    const { clock, alive, signs } = await watched();
    for (let said = 1; said <= 3; said++) {
      await expect.poll(signs, { timeout: 20_000 }).toBe(said);
      // It sleeps only when systemd-notify has ended.
      await expect.poll(() => clock.sleepers).toBe(1);
      await clock.advance(LIMIT_MS / 2);
    }
    await expect.poll(signs, { timeout: 20_000 }).toBe(4);
    await alive[Symbol.asyncDispose]();
    await clock.advance(LIMIT_MS);
    expect(signs()).toBe(4);
  });

  it.each([
    ["without a watchdog", { WATCHDOG_USEC: "" }],
    ["with the watchdog of another process", { WATCHDOG_PID: "1" }],
  ])("says nothing %s", async (_, env) => {
    const { manager, systemd, alive, signs } = await watched(env);
    await alive[Symbol.asyncDispose]();
    await manager.ready("works");
    await expect.poll(() => systemd.words(), { timeout: 20_000 }).toContain("READY=1");
    expect(signs()).toBe(0);
  });
});
