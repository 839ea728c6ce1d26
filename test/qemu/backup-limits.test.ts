import { execFile } from "node:child_process";
import { readdir } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import { findDaemons } from "../../src/drivers/end-daemon.js";
import { systemClock } from "../../src/drivers/system-clock.js";
import { type BackupLimits, NO_LIMITS } from "../../src/model/backup-limits.js";
import type { HostTime } from "../../src/model/lease.js";
import type { Clock } from "../../src/ports/clock.js";
import { type BackupProgress, runBackup } from "../../src/services/backup-run.js";
import { temporaryDirectory } from "../support/lifetime.js";
import { startSite, type Site, type SiteDisk } from "../support/site.js";

const MIB = 1024 * 1024;

const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined };

/** Time that passes faster, for all but QEMU; what the clock on the wall shows is the test's to say. */
class FastClock implements Clock {
  wallMs = Date.parse("2026-01-15T12:00:00Z");
  readonly #factor: number;

  constructor(factor: number) {
    this.#factor = factor;
  }

  now(): number {
    return this.wallMs;
  }

  hostTime(): HostTime {
    return systemClock.hostTime();
  }

  monotonicMs(): number {
    return systemClock.monotonicMs() * this.#factor;
  }

  sleep(ms: number, signal: AbortSignal): Promise<void> {
    return delay(ms / this.#factor, undefined, { signal });
  }
}

type Pace = Extract<BackupProgress, { readonly step: "pace" }>;

/** A backup in this process. */
async function backUp(
  at: Site,
  limits: Partial<BackupLimits>,
  clock: Clock,
  onPace: (pace: Pace) => void = () => undefined,
) {
  const context = await startAgent(await loadConfig(at.configPath), quiet);
  return runBackup(
    { ...context, clock, limits: { ...NO_LIMITS, ...limits } },
    {
      domain: "vm",
      onProgress: (progress) => {
        if (progress.step === "pace") onPace(progress);
      },
    },
  );
}

const disk = (mib: number, more: Partial<SiteDisk> = {}): SiteDisk => ({
  ...{ target: "vda", format: "qcow2", sizeBytes: mib * MIB, filledBytes: mib * MIB },
  ...more,
});

describe("the limits of a backup", () => {
  it("hold it back, and it says how long", async () => {
    const at = await startSite({ disks: [disk(12), disk(4, { target: "vdb" })] });
    const paces: Pace[] = [];
    const limits = { readBytesPerSecond: 4 * MIB };
    const { id, manifest } = await backUp(at, limits, new FastClock(8), (pace) => void paces.push(pace));
    // 16 MiB of both, a quarter of a second's bytes at once.
    expect(Math.max(...manifest.disks.map(({ durationMs }) => durationMs))).toBeGreaterThan(3700);
    expect(manifest.waits?.readLimit).toBeGreaterThan(0);
    expect(manifest.waits).toMatchObject({ writeLimit: 0, guestLatency: 0 });
    expect(paces.length).toBeGreaterThan(0);
    for (const { readBytesPerSecond } of paces) expect(readBytesPerSecond).toBe(4 * MIB);
    const shown = await at.json<{ waits: Record<string, string> }>("backup", "show", id);
    expect(shown.waits).toEqual({
      readLimitMs: String(manifest.waits?.readLimit),
      writeLimitMs: "0",
      guestLatencyMs: "0",
    });
    expect((await at.run("backup", "show", id)).stdout).toMatch(/^Waited +.* for the read limit$/m);
  });

  it("are QEMU's to keep where it copies by itself, also when the hour changes them", async () => {
    const at = await startSite({ disks: [disk(24)], exports: "staged" });
    const clock = new FastClock(1);
    const speeds = new Set<number>();
    const over = new AbortController();
    const looking = (async () => {
      while (!over.signal.aborted) {
        const jobs = (await at.vm.qmp("query-block-jobs")) as { speed: number }[];
        for (const { speed } of jobs) speeds.add(speed / MIB);
        if (speeds.size > 0) clock.wallMs = Date.parse("2026-01-15T18:00:00Z");
        await delay(20);
      }
    })();
    const hours = [{ fromMinute: 1080, untilMinute: 1081, readBytesPerSecond: 16 * MIB }];
    const limits = { readBytesPerSecond: 4 * MIB, writeBytesPerSecond: 512 * MIB, hours };
    const { manifest } = await backUp(at, limits, clock);
    over.abort();
    await looking;
    expect([...speeds]).toEqual([4, 16]);
    expect(manifest.waits?.readLimit).toBeGreaterThan(0);
    expect(manifest.disks[0]?.storedBytes).toBe(24 * MIB);
  });

  it("give way to the guest while its writes take long, and not longer", async () => {
    const group = "throttle-group,id=storage,x-bps-total=33554432";
    const at = await startSite({
      disks: [disk(128, { throttleGroup: "storage" })],
      extraArguments: ["-object", group],
    });
    const over = new AbortController();
    const guest = (async () => {
      for (let write = 0; !over.signal.aborted; write++) {
        // Unlike `write`, it counts as one of the guest's.
        await at.vm.guestIo("vda", `aio_write -P 1 ${((write * 17) % 256) * 65536} 65536`);
        await delay(25, undefined, { signal: over.signal }).catch(() => undefined);
      }
    })();
    const rates: (number | undefined)[] = [];
    const onPace = ({ guestBytesPerSecond }: Pace): void => {
      if (rates.length === 0 && guestBytesPerSecond !== undefined) {
        // What the guest suffered from is over.
        void at.vm.qmp("qom-set", {
          path: "/objects/storage",
          property: "limits",
          value: { "bps-total": 0 },
        });
      }
      rates.push(guestBytesPerSecond);
    };
    const { manifest } = await backUp(at, { guestLatencyMs: 100 }, new FastClock(4), onPace);
    over.abort();
    await guest;
    const [first = 0] = rates.filter((rate) => rate !== undefined);
    expect(first).toBeGreaterThan(0);
    expect(first).toBeLessThan(8 * MIB);
    expect(Math.max(...rates.map((rate) => rate ?? Infinity))).toBeGreaterThan(first);
    expect(manifest.waits?.guestLatency).toBeGreaterThan(0);
    expect(manifest.waits).toMatchObject({ readLimit: 0, writeLimit: 0 });
  });
});

describe("the I/O priority", () => {
  it("is that of all threads of the storage daemon that takes a backup", async () => {
    const directory = await temporaryDirectory();
    const at = await startSite({
      disks: [disk(8)],
      config: { more: { runtimeDir: directory.file("run"), ioPriority: 7, limits: { read: "1M" } } },
    });
    const running = await at.start("backup", "run", "vm");
    const priorities = new Set<string>();
    // A writer is a thread beside the main one and that of RCU.
    for (let threads = 0; threads < 3;) {
      expect(running.running).toBe(true);
      const found = await daemonThreads(directory.file("run"));
      threads = found.length;
      for (const tid of found) priorities.add(await priorityOf(tid));
      priorities.delete("gone");
    }
    expect([...priorities]).toEqual(["best-effort: prio 7"]);
    await running.kill("SIGTERM");
  });
});

/** Of the storage daemons whose sockets are below a directory. */
async function daemonThreads(directory: string): Promise<readonly string[]> {
  const names = await readdir(directory).catch(() => []);
  const daemons = (await Promise.all(names.map((name) => findDaemons(`${directory}/${name}`)))).flat();
  const tasks = daemons.map(({ pid }) => readdir(`/proc/${pid}/task`).catch(() => []));
  return (await Promise.all(tasks)).flat();
}

async function priorityOf(tid: string): Promise<string> {
  const { stdout } = await promisify(execFile)("ionice", ["-p", tid]).catch(() => ({ stdout: "gone" }));
  return stdout.trim();
}
