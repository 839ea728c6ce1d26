import { describe, expect, it } from "vitest";
import type { BlockReader } from "../../../src/ports/block-io.js";
import { runBackup } from "../../../src/services/backup-run.js";
import type { BackupProgress } from "../../../src/services/backup-run.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const MIB = 1024 * 1024;

async function startWorld(): Promise<FakeWorld> {
  const directory = await temporaryDirectory();
  const world = new FakeWorld(directory.path, { disks: [{ target: "vda", sizeBytes: MIB }] });
  world.domain.write("vda", 0, MIB, 0x11);
  // The watch looks without a pause, but lets others go on.
  world.domain.pause = () => new Promise((resolve) => setImmediate(resolve));
  return world;
}

/** Reads wait for `until`, or for ever: then the backup can only be ended by its signal. */
function withReads(context: ServiceContext, until?: Promise<void>): ServiceContext {
  const readers: ServiceContext["readers"] = {
    open: async (address, signal) => {
      const reader = await context.readers.open(address, signal);
      const read: BlockReader["read"] = async (offset, length, stop, into) => {
        const stopped = new Promise<void>((_resolve, reject) =>
          stop?.addEventListener("abort", () => reject(stop.reason as FleeceError)),
        );
        await Promise.race([stopped, ...(until === undefined ? [] : [until])]);
        return reader.read(offset, length, stop, into);
      };
      return new Proxy(reader, { get: (inner, key) => (key === "read" ? read : bound(inner, key)) });
    },
  };
  return { ...context, readers };
}

function bound(target: object, key: string | symbol): unknown {
  const value: unknown = Reflect.get(target, key, target);
  return typeof value === "function" ? (value.bind(target) as unknown) : value;
}

describe("the watch over the reserve of a repository", () => {
  it("ends a backup when the reserve is reached, and nothing is left of it", async () => {
    const world = await startWorld();
    const before = await world.traces();
    const { context } = world.process((point) => {
      if (point === "add access: after") world.domain.host.freeBytes = 0;
    });
    world.repository.reserveBytes = MIB;
    await expect(runBackup(withReads(context), { domain: "vm" })).rejects.toMatchObject({
      code: "NO_SPACE",
      message: "Repository default has no more free than its reserve of 1 MiB",
    });
    expect(await world.traces()).toEqual(before);
    expect(await world.repository.list()).toEqual([]);
    const steps: string[] = [];
    const later = world.process((point) => void steps.push(point)).context;
    await expect(runBackup(later, { domain: "vm" })).rejects.toMatchObject({ code: "NO_SPACE" });
    expect(steps.filter((step) => step.startsWith("add access"))).toEqual([]);
  });
});

describe("the watch over the scratch space of a backup", () => {
  it("ends the backup when the limit is exceeded, and the filter is gone at once", async () => {
    const world = await startWorld();
    const before = await world.traces();
    const steps: string[] = [];
    const { context } = world.process((point) => void steps.push(point));
    world.domain.host.scratch.used = 3 * MIB;
    const limited = { ...context, scratchLimits: new Map([["vm", 2 * MIB]]) };
    await expect(runBackup(withReads(limited), { domain: "vm" })).rejects.toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: "The block snapshot was given up: its scratch space of 3 MiB is over the limit of 2 MiB",
    });
    const undone = steps.filter((step) => step.startsWith("undo"));
    expect(undone).toContain("undo vm-filter: before");
    expect(await world.traces()).toEqual(before);
  });

  it("ends the backup when less than the reserve is free", async () => {
    const world = await startWorld();
    const { scratch } = world.domain.host;
    scratch.reserveBytes = 4 * MIB;
    const { context } = world.process((point) => {
      if (point === "reader.read: before" || point.startsWith("add export")) scratch.free = MIB;
    });
    await expect(runBackup(withReads(context), { domain: "vm" })).rejects.toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message:
        "The block snapshot was given up: the scratch directory has 1 MiB free, which is less than the reserve of 4 MiB",
    });
  });

  it("refuses a backup with NO_SPACE when less than the reserve is free beforehand", async () => {
    const world = await startWorld();
    world.domain.host.scratch.reserveBytes = 4 * MIB;
    world.domain.host.scratch.free = MIB;
    const { context } = world.process();
    await expect(runBackup(context, { domain: "vm" })).rejects.toMatchObject({ code: "NO_SPACE" });
  });

  it("ends the backup as soon as a probe finds the snapshot broken", async () => {
    const world = await startWorld();
    const { context } = world.process((point) => {
      if (point === "check: before") throw new FleeceError("SNAPSHOT_BROKEN", "Content is gone");
    });
    await expect(runBackup(withReads(context), { domain: "vm" })).rejects.toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: "Content is gone",
    });
  });

  it("goes on when it cannot look, tells what is used, and keeps the most of it in the manifest", async () => {
    const world = await startWorld();
    const { scratch } = world.domain.host;
    let looks = 0;
    let enough: () => void = () => undefined;
    const until = new Promise<void>((resolve) => (enough = resolve));
    const { context } = world.process((point) => {
      if (point !== "check: before") return;
      looks++;
      scratch.used = looks === 3 ? 5 * MIB : MIB;
      if (looks === 2) throw new FleeceError("QEMU_FAILED", "Made to fail");
      if (looks === 6) enough();
    });
    const told: BackupProgress[] = [];
    const entry = await runBackup(withReads(context, until), {
      domain: "vm",
      onProgress: (progress) => void told.push(progress),
    });
    expect(entry.manifest.scratchPeakBytes).toBe(5 * MIB);
    expect(told).toContainEqual({ step: "scratch", usedBytes: 5 * MIB });
    expect(world.log).toContain("Cannot look after it: Made to fail");
  });

  it("ends with the caller's reason when that gives up, and does nothing any more then", async () => {
    const world = await startWorld();
    const cancel = new AbortController();
    let looks = 0;
    const { context } = world.process((point) => {
      if (point === "check: before" && ++looks === 3)
        cancel.abort(new FleeceError("INTERRUPTED", "Cancelled"));
    });
    const running = runBackup(withReads(context), { domain: "vm", signal: cancel.signal });
    await expect(running).rejects.toMatchObject({ code: "INTERRUPTED" });
    const after = looks;
    await new Promise((resolve) => setImmediate(resolve));
    expect(looks).toBe(after);
  });
});
