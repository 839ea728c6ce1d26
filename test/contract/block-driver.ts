import { describe, expect, it } from "vitest";

import { changesSince } from "../../src/model/checkpoint.js";
import type { Extent } from "../../src/model/extents.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import type { ExportAddress, FileFingerprint, SnapshotPlan } from "../../src/model/snapshot-plan.js";
import { planSnapshot } from "../../src/model/snapshot-plan.js";
import { isQemuEntry, type UndoEntry } from "../../src/model/undo.js";
import type { BlockDriver, UndoLog } from "../../src/ports/block-driver.js";
import type { ReaderFactory } from "../../src/ports/block-io.js";
import type { HostCleaner } from "../../src/ports/state-store.js";
import { deleteCheckpoint } from "../../src/services/checkpoints.js";
import { randomId } from "../../src/shared/ids.js";
import { untilTestEnds } from "../support/lifetime.js";

/** A domain with at least two disks of different, odd sizes (a multiple of 512, not of 64 KiB), all zero. */
export interface DriverHarness extends AsyncDisposable {
  readonly scratchDir: string;
  readonly host: HostCleaner;
  readonly readers: ReaderFactory;
  driver(): Promise<BlockDriver>;
  write(target: string, offset: number, length: number, pattern: number): Promise<void>;
  zero(target: string, offset: number, length: number): Promise<void>;
  /** Everything outside that a driver could leave behind, for comparison by equality. Bitmaps are left out. */
  traces(): Promise<unknown>;
}

/** Records entries in order, as the journal would. */
class MemoryUndoLog implements UndoLog {
  entries: UndoEntry[] = [];

  register(...entries: UndoEntry[]): Promise<void> {
    this.entries.push(...entries);
    return Promise.resolve();
  }

  settle(...entries: UndoEntry[]): Promise<void> {
    const settled = new Set(entries.map((entry) => JSON.stringify(entry)));
    this.entries = this.entries.filter((entry) => !settled.has(JSON.stringify(entry)));
    return Promise.resolve();
  }
}

/** Refuses the registration after the first `allowed`: what it was meant to announce must not come into being. */
class FailingUndoLog extends MemoryUndoLog {
  #allowed: number;

  constructor(allowed: number) {
    super();
    this.#allowed = allowed;
  }

  override register(...entries: UndoEntry[]): Promise<void> {
    if (this.#allowed-- <= 0) return Promise.reject(new Error("The journal is full"));
    return super.register(...entries);
  }
}

interface Frozen {
  readonly plan: SnapshotPlan;
  readonly log: MemoryUndoLog;
  readonly addresses: readonly ExportAddress[];
  readonly fingerprints: readonly FileFingerprint[];
}

/** What every driver of disks must do alike: the same suite for a running QEMU, an inactive domain and the fake. */
export function describeBlockDriver(name: string, start: () => Promise<DriverHarness>): void {
  describe(`BlockDriver contract: ${name}`, () => {
    const set = async () => {
      const harness = untilTestEnds(await start());
      const driver = untilTestEnds(await harness.driver());
      return { harness, driver };
    };

    it("tells of the guest's writes only for disks that a guest has", async () => {
      const { driver } = await set();
      const targets = (await driver.inspect()).disks.map(({ target }) => target);
      const figures = await driver.guestWrites([...targets, "absent"]);
      expect([...figures.keys()]).toEqual(driver.mode === "running" ? targets : []);
      for (const { operations, totalMs } of figures.values()) {
        expect([operations >= 0, totalMs >= 0]).toEqual([true, true]);
      }
    });

    it("reports disks with their sizes and no checkpoints at first", async () => {
      const { driver } = await set();
      const state = await driver.inspect();
      expect(state.disks.length).toBeGreaterThanOrEqual(2);
      for (const disk of state.disks) {
        expect(disk.sizeBytes % 512).toBe(0);
        expect(disk.sizeBytes % BLOCK_SIZE).not.toBe(0);
        expect(disk.checkpoints).toEqual([]);
        expect(disk.obstacle).toBeUndefined();
      }
    });

    it("offers the content of the frozen moment, to the last byte of an odd-sized disk", async () => {
      const { harness, driver } = await set();
      const [disk] = (await driver.inspect()).disks;
      const { target, sizeBytes } = must(disk);
      await harness.write(target, 1000 * 512, 3000, 0x11);
      await harness.write(target, sizeBytes - 512, 512, 0x22);
      const frozen = await freeze(harness, driver, "one");
      const content = await readAll(harness, address(frozen, target));
      expect(content.length).toBe(sizeBytes);
      expect(content.subarray(512_000, 515_000).every((byte) => byte === 0x11)).toBe(true);
      expect(content.subarray(-512).every((byte) => byte === 0x22)).toBe(true);
      expect(content.subarray(0, 512_000).every((byte) => byte === 0)).toBe(true);
      await undoAll(harness, driver, frozen.log);
    });

    it("tells exactly the blocks that changed since a checkpoint, zeroed ones as changed and zero", async () => {
      const { harness, driver } = await set();
      const [disk] = (await driver.inspect()).disks;
      const { target } = must(disk);
      await harness.write(target, 0, 4 * BLOCK_SIZE, 0x33);
      await keep(harness, driver, await freeze(harness, driver, "one"));
      await harness.write(target, BLOCK_SIZE + 512, 512, 0x44);
      await harness.zero(target, 3 * BLOCK_SIZE, BLOCK_SIZE);
      const frozen = await freeze(harness, driver, "two", "one");
      const extents = await allExtents(harness, address(frozen, target));
      expect(changedBlocks(extents)).toEqual([1, 3]);
      expect(extents.find(({ offset }) => offset === 3 * BLOCK_SIZE)).toMatchObject({
        changed: true,
        zero: true,
      });
      await undoAll(harness, driver, frozen.log);
    });

    it("unites all bitmaps since an older checkpoint", async () => {
      const { harness, driver } = await set();
      const { target } = must((await driver.inspect()).disks[1]);
      await keep(harness, driver, await freeze(harness, driver, "one"));
      await harness.write(target, 2 * BLOCK_SIZE, 512, 1);
      await keep(harness, driver, await freeze(harness, driver, "two"));
      await harness.write(target, 5 * BLOCK_SIZE, 512, 2);
      const frozen = await freeze(harness, driver, "three", "one");
      expect(changedBlocks(await allExtents(harness, address(frozen, target)))).toEqual([2, 5]);
      await undoAll(harness, driver, frozen.log);
    });

    it("records in the newest checkpoint alone", async () => {
      const { harness, driver } = await set();
      await keep(harness, driver, await freeze(harness, driver, "one"));
      await keep(harness, driver, await freeze(harness, driver, "two"));
      for (const { checkpoints } of (await driver.inspect()).disks) {
        expect(checkpoints.map(({ name, recording }) => [name, recording])).toEqual([
          ["one", false],
          ["two", true],
        ]);
      }
    });

    it("merges an undone checkpoint into its parent, which records on, without losing a block", async () => {
      const { harness, driver } = await set();
      const { target } = must((await driver.inspect()).disks[0]);
      await keep(harness, driver, await freeze(harness, driver, "one"));
      await harness.write(target, 0, 512, 1);
      const failed = await freeze(harness, driver, "two", "one");
      await undoAll(harness, driver, failed.log);
      await harness.write(target, 4 * BLOCK_SIZE, 512, 2);
      expect((await driver.inspect()).disks[0]?.checkpoints).toMatchObject([
        { name: "one", recording: true },
      ]);
      const frozen = await freeze(harness, driver, "three", "one");
      expect(changedBlocks(await allExtents(harness, address(frozen, target)))).toEqual([0, 4]);
      await undoAll(harness, driver, frozen.log);
    });

    it("deletes a middle checkpoint by merging, so that the older one still knows every change", async () => {
      const { harness, driver } = await set();
      const { target } = must((await driver.inspect()).disks[0]);
      await keep(harness, driver, await freeze(harness, driver, "one"));
      await harness.write(target, 1 * BLOCK_SIZE, 512, 1);
      await keep(harness, driver, await freeze(harness, driver, "two"));
      await harness.write(target, 2 * BLOCK_SIZE, 512, 1);
      await keep(harness, driver, await freeze(harness, driver, "three"));
      await harness.write(target, 3 * BLOCK_SIZE, 512, 1);
      await deleteCheckpoint(driver, "two");
      await deleteCheckpoint(driver, "two");
      expect((await driver.inspect()).disks[0]?.checkpoints.map((each) => each.name)).toEqual([
        "one",
        "three",
      ]);
      const frozen = await freeze(harness, driver, "four", "one");
      expect(changedBlocks(await allExtents(harness, address(frozen, target)))).toEqual([1, 2, 3]);
      await undoAll(harness, driver, frozen.log);
    });

    it("leaves nothing behind when everything is undone, also a second time", async () => {
      const { harness, driver } = await set();
      const before = await harness.traces();
      const frozen = await freeze(harness, driver, "one");
      expect(await harness.traces()).not.toEqual(before);
      await undoAll(harness, driver, frozen.log);
      await undoAll(harness, driver, frozen.log);
      expect(await harness.traces()).toEqual(before);
      for (const { checkpoints } of (await driver.inspect()).disks) expect(checkpoints).toEqual([]);
    });

    it("undoes a half-done freeze: entries of things that were never made are fine", async () => {
      const { harness, driver } = await set();
      const before = await harness.traces();
      const frozen = await freeze(harness, driver, "one");
      const never = (await plan(harness, driver, "other")).disks.flatMap<UndoEntry>(({ target, nodes }) => [
        { kind: "vm-node", node: nodes.scratch },
        { kind: "vm-filter", target, filter: nodes.filter },
        { kind: "vm-export", id: "never-made" },
        { kind: "file", path: `${harness.scratchDir}/never-made` },
      ]);
      frozen.log.entries.push(...never, { kind: "vm-held" });
      frozen.log.entries.push({ kind: "vm-frozen", socketPath: `${harness.scratchDir}/no-agent` });
      await undoAll(harness, driver, frozen.log);
      expect(await harness.traces()).toEqual(before);
    });

    it("fails with DISK_NOT_FOUND for bitmaps of a disk that does not exist", async () => {
      const { driver } = await set();
      const step = { action: "remove", bitmap: "fleece:1:1:1:x" } as const;
      await expect(driver.changeBitmaps(new Map([["nope", [step]]]))).rejects.toMatchObject({
        code: "DISK_NOT_FOUND",
      });
    });

    it("registers everything before it acquires it: a failing journal at any point leaves nothing", async () => {
      const { harness, driver } = await set();
      await keep(harness, driver, await freeze(harness, driver, "one"));
      const before = await harness.traces();
      const announced = await registrations(harness, driver);
      expect(announced.length).toBeGreaterThan(1);
      for (const allowed of announced.keys()) {
        const log = new FailingUndoLog(allowed);
        await expect(freeze(harness, driver, "two", "one", log)).rejects.toThrow("journal");
        await undoAll(harness, driver, log);
        expect(await harness.traces()).toEqual(before);
        for (const { checkpoints, format } of (await driver.inspect()).disks) {
          if (format === "raw" && driver.mode === "inactive") continue;
          expect(checkpoints).toMatchObject([{ name: "one", recording: true }]);
        }
      }
    });

    it("acquires nothing that lasts when it is cancelled beforehand", async () => {
      const { harness, driver } = await set();
      const before = await harness.traces();
      const log = new MemoryUndoLog();
      const snapshot = await plan(harness, driver, "one");
      await expect(driver.freeze(snapshot, log, AbortSignal.abort())).rejects.toThrow();
      await undoAll(harness, driver, log);
      expect(await harness.traces()).toEqual(before);
      for (const { checkpoints } of (await driver.inspect()).disks) expect(checkpoints).toEqual([]);
    });

    it("keeps the frozen content and changes while the disk is written to, or says that they are lost", async () => {
      const { harness, driver } = await set();
      const { target } = must((await driver.inspect()).disks[0]);
      await harness.write(target, 0, 2 * BLOCK_SIZE, 0x55);
      await keep(harness, driver, await freeze(harness, driver, "one"));
      await harness.write(target, BLOCK_SIZE, 512, 0x66);
      const frozen = await freeze(harness, driver, "two", "one");
      await harness.write(target, 0, 512, 0x77);
      await harness.write(target, 6 * BLOCK_SIZE, 512, 0x77);
      const intact = await driver.checkIntact(frozen.plan, frozen.fingerprints).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (driver.mode === "inactive") {
        expect(intact).toMatchObject({ code: "DISK_CHANGED" });
      } else {
        expect(intact).toBeUndefined();
        const content = await readAll(harness, address(frozen, target));
        expect([content[0], content[BLOCK_SIZE], content[6 * BLOCK_SIZE]]).toEqual([0x55, 0x66, 0]);
        expect(changedBlocks(await allExtents(harness, address(frozen, target)))).toEqual([1]);
      }
      await undoAll(harness, driver, frozen.log);
    });

    it("reads and maps what the disk zeroes after the frozen moment as the data it was", async () => {
      const { harness, driver } = await set();
      if (driver.mode === "inactive") return;
      const { target, sizeBytes } = must((await driver.inspect()).disks[0]);
      await harness.write(target, 0, 16 * BLOCK_SIZE, 0x55);
      const frozen = await freeze(harness, driver, "one");
      await harness.zero(target, 2 * BLOCK_SIZE, BLOCK_SIZE);
      await harness.zero(target, 5 * BLOCK_SIZE, 2 * BLOCK_SIZE);
      const extents = await allExtents(harness, address(frozen, target));
      expect(extents.filter(({ zero }) => !zero)).toMatchObject([{ offset: 0, length: 16 * BLOCK_SIZE }]);
      const content = await readAll(harness, address(frozen, target));
      expect(content.length).toBe(sizeBytes);
      expect(content.subarray(0, 16 * BLOCK_SIZE).every((byte) => byte === 0x55)).toBe(true);
      await undoAll(harness, driver, frozen.log);
    });

    it("records what is written from the frozen moment on, also while the snapshot lives", async () => {
      const { harness, driver } = await set();
      const { target } = must((await driver.inspect()).disks[0]);
      const first = await freeze(harness, driver, "one");
      await harness.write(target, 3 * BLOCK_SIZE, 512, 1);
      await keep(harness, driver, first);
      await harness.write(target, 5 * BLOCK_SIZE, 512, 1);
      const second = await freeze(harness, driver, "two", "one");
      expect(changedBlocks(await allExtents(harness, address(second, target)))).toEqual([3, 5]);
      await undoAll(harness, driver, second.log);
    });

    it("lists extents in order, without gaps, to the end; all changed when no checkpoint was asked about", async () => {
      const { harness, driver } = await set();
      const { target, sizeBytes } = must((await driver.inspect()).disks[1]);
      await harness.write(target, BLOCK_SIZE + 512, 512, 1);
      const frozen = await freeze(harness, driver, "one");
      let position = 0;
      for (const { offset, length, changed } of await allExtents(harness, address(frozen, target))) {
        expect(offset).toBe(position);
        expect(length).toBeGreaterThan(0);
        expect(changed).toBe(true);
        position += length;
      }
      expect(position).toBe(sizeBytes);
      await undoAll(harness, driver, frozen.log);
    });

    it("undoes by a new driver what an earlier one left behind", async () => {
      const { harness, driver } = await set();
      await keep(harness, driver, await freeze(harness, driver, "one"));
      const before = await harness.traces();
      const frozen = await freeze(harness, driver, "two", "one");
      await driver.close();
      const later = untilTestEnds(await harness.driver());
      await undoAll(harness, later, frozen.log);
      expect(await harness.traces()).toEqual(before);
      const [disk] = (await later.inspect()).disks;
      expect(disk?.checkpoints).toMatchObject([{ name: "one", recording: true }]);
    });

    it("lists bitmaps of others apart and leaves them alone", async () => {
      const { harness, driver } = await set();
      const { target } = must((await driver.inspect()).disks[0]);
      const foreign = {
        action: "add",
        bitmap: "other-tool",
        persistent: true,
        granularityBytes: 65536,
      } as const;
      await driver.changeBitmaps(new Map([[target, [foreign]]]));
      await keep(harness, driver, await freeze(harness, driver, "one"));
      await undoAll(harness, driver, (await freeze(harness, driver, "two", "one")).log);
      await deleteCheckpoint(driver, "one");
      expect((await driver.inspect()).disks[0]).toMatchObject({
        checkpoints: [],
        foreignBitmaps: ["other-tool"],
      });
    });

    it("changes the bitmaps of a running domain on all disks or on none", async () => {
      const { driver } = await set();
      if (driver.mode === "inactive") return;
      const state = await driver.inspect();
      const [first, second] = state.disks.map(({ target }) => target);
      const add = {
        action: "add",
        bitmap: "fleece:1:1:1:x",
        persistent: true,
        granularityBytes: 65536,
      } as const;
      const remove = { action: "remove", bitmap: "fleece:1:9:9:never" } as const;
      const changes = new Map([
        [must(first), [add]],
        [must(second), [remove]],
      ]);
      await expect(driver.changeBitmaps(changes)).rejects.toMatchObject({ code: "QEMU_FAILED" });
      expect((await driver.inspect()).disks).toEqual(state.disks);
    });

    it("calls an untouched snapshot intact", async () => {
      const { harness, driver } = await set();
      const log = new MemoryUndoLog();
      const snapshot = await plan(harness, driver, "one");
      const { fingerprints } = await driver.freeze(snapshot, log);
      await expect(driver.checkIntact(snapshot, fingerprints)).resolves.toBeUndefined();
      await undoAll(harness, driver, log);
    });
  });
}

async function plan(harness: DriverHarness, driver: BlockDriver, name: string): Promise<SnapshotPlan> {
  const state = await driver.inspect();
  return planSnapshot(state, {
    id: randomId(8),
    targets: state.disks.map(({ target }) => target),
    scratchDir: harness.scratchDir,
    checkpoint: { name, timeMs: Date.now() },
  });
}

/** Freezes all disks with a new checkpoint and exports them, with the changes since another if asked. */
async function freeze(
  harness: DriverHarness,
  driver: BlockDriver,
  name: string,
  since?: string,
  log = new MemoryUndoLog(),
): Promise<Frozen> {
  const before = await driver.inspect();
  const snapshot = await plan(harness, driver, name);
  const { fingerprints } = await driver.freeze(snapshot, log);
  const exports = snapshot.disks.map(({ target, nodes }) => {
    const base = { target, exportName: `${target}-${snapshot.id}`, nodes };
    if (since === undefined) return base;
    const disk = must(before.disks.find((listed) => listed.target === target));
    const changes = changesSince(disk.checkpoints, since);
    if (!changes.valid) throw new Error(changes.reason);
    return { ...base, changes: { since, bitmaps: changes.bitmaps } };
  });
  const addresses = await driver.startExports(snapshot, exports, log);
  return { plan: snapshot, log, addresses, fingerprints };
}

/** What each registration of one snapshot announces. */
async function registrations(harness: DriverHarness, driver: BlockDriver): Promise<string[][]> {
  const announced: string[][] = [];
  const log = new MemoryUndoLog();
  const register = log.register.bind(log);
  log.register = (...entries) => {
    announced.push(entries.map(({ kind }) => kind));
    return register(...entries);
  };
  await undoAll(harness, driver, (await freeze(harness, driver, "counted", "one", log)).log);
  return announced;
}

/** Ends a snapshot with success: the checkpoint stays. */
async function keep(harness: DriverHarness, driver: BlockDriver, frozen: Frozen): Promise<void> {
  await frozen.log.settle(...frozen.log.entries.filter(({ kind }) => kind === "checkpoint"));
  await undoAll(harness, driver, frozen.log);
}

async function undoAll(harness: DriverHarness, driver: BlockDriver, log: MemoryUndoLog): Promise<void> {
  for (const entry of log.entries.toReversed()) {
    if (entry.kind === "checkpoint") await deleteCheckpoint(driver, entry.checkpoint.name, entry.targets);
    else if (isQemuEntry(entry)) await driver.undo(entry);
    else await harness.host.undo(entry);
  }
}

async function readAll(harness: DriverHarness, from: ExportAddress): Promise<Uint8Array> {
  await using reader = await harness.readers.open(from);
  return await reader.read(0, reader.sizeBytes);
}

async function allExtents(harness: DriverHarness, from: ExportAddress): Promise<Extent[]> {
  await using reader = await harness.readers.open(from);
  const extents: Extent[] = [];
  for await (const extent of reader.extents()) extents.push(extent);
  return extents;
}

function changedBlocks(extents: readonly Extent[]): number[] {
  const blocks = new Set<number>();
  for (const { offset, length, changed } of extents) {
    if (!changed) continue;
    for (let at = offset; at < offset + length; at += BLOCK_SIZE) blocks.add(Math.floor(at / BLOCK_SIZE));
  }
  return [...blocks].toSorted((a, b) => a - b);
}

function address({ addresses }: Frozen, target: string): ExportAddress {
  return must(addresses.find((listed) => listed.target === target));
}

export function must<T>(value: T | undefined): T {
  if (value === undefined) throw new Error("Expected a value, got none");
  return value;
}
