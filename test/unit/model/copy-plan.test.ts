import { describe, expect, it } from "vitest";
import type { DiskMode, IntactEntry } from "../../../src/model/backup.js";
import { copiedSince, missingBackups, planCopy } from "../../../src/model/copy-plan.js";
import { fullEntry } from "../api/samples.js";

const [DISK] = fullEntry.manifest.disks;

/** A backup of the n-th minute, with the modes of its disks. */
function backup(
  n: number,
  modes: Readonly<Record<string, DiskMode>>,
  more: Partial<IntactEntry> = {},
): IntactEntry {
  const { parent: _, ...manifest } = fullEntry.manifest;
  if (DISK === undefined) throw new Error("Expected a disk in the sample");
  const disks = Object.entries(modes).map(([target, mode]) => ({
    ...DISK,
    target,
    mode,
    digests: `${target}.digests`,
    reason: `of ${n}`,
  }));
  const isFull = disks.every(({ mode }) => mode === "whole");
  return {
    ...{ repository: "default", domain: "web01", id: `b${n}` },
    manifest: {
      ...{ ...manifest, id: `b${n}`, disks, reason: `as ${n}`, time: new Date(n * 60_000).toISOString() },
      ...(isFull ? { level: "full" } : { level: "incremental", parent: `b${n - 1}` }),
    },
    ...more,
  };
}

const CHAIN = [
  backup(1, { vda: "whole", vdb: "whole" }),
  backup(2, { vda: "changes", vdb: "whole" }),
  backup(3, { vda: "compare", vdb: "changes" }),
];

describe("planCopy", () => {
  it("keeps all of a backup whose parent is there", () => {
    const plan = planCopy(CHAIN, CHAIN.slice(0, 2));
    expect(plan).toMatchObject({ level: "incremental", reason: "as 3", parent: { id: "b2" } });
    expect(plan.disks).toEqual(CHAIN[2]?.manifest.disks);
    expect(plan.disks.map((disk) => copiedSince(plan, disk))).toEqual(["b2", "b2"]);
  });

  it("says why it passes over a parent that was found damaged", () => {
    const doubts = { backups: new Map([["b2", "bad"]]), disks: new Map() };
    const plan = planCopy(CHAIN, CHAIN.slice(0, 2), doubts);
    const flaw = "backup b2 was found damaged when it was verified: bad";
    expect(plan).toMatchObject({ flaw, reason: `based on backup b1: ${flaw}`, parent: { id: "b1" } });
    expect(planCopy(CHAIN, CHAIN.slice(0, 1), doubts)).toMatchObject({ flaw: undefined });
  });

  it("stores a disk whole that was stored so after the nearest backup that is there", () => {
    const plan = planCopy(CHAIN, CHAIN.slice(0, 1));
    expect(plan).toMatchObject({ level: "incremental", parent: { id: "b1" } });
    expect(plan.disks.map(({ mode }) => mode)).toEqual(["compare", "whole"]);
    expect(plan.disks.map((disk) => copiedSince(plan, disk))).toEqual(["b1", undefined]);
  });

  it.each([
    ["there is nothing", []],
    ["what is there has a broken chain", CHAIN.slice(1, 2)],
  ])("makes a full if %s", (_, there) => {
    const plan = planCopy(CHAIN, there);
    expect(plan).toMatchObject({ level: "full", parent: undefined });
    expect(plan.disks.map(({ mode }) => mode)).toEqual(["whole", "whole"]);
  });

  it("makes a full if what is there was found damaged", () => {
    const doubts = { backups: new Map([["b1", "a block differs"]]), disks: new Map() };
    expect(planCopy(CHAIN, CHAIN.slice(0, 2), doubts)).toMatchObject({ level: "full", parent: undefined });
  });
});

describe("planCopy without a common backup", () => {
  const merged = (entry: IntactEntry): IntactEntry => {
    const disks = entry.manifest.disks.map((disk) => ({ ...disk, digests: `${disk.target}.digests~b0` }));
    return { ...entry, manifest: { ...entry.manifest, disks } };
  };
  const full = backup(3, { vda: "whole", vdb: "whole" });
  const there = [backup(2, { vda: "whole" }), backup(4, { vda: "whole" })];

  it("leaves a full one, as it was taken", () => {
    expect(planCopy([full], there)).toMatchObject({ level: "full", reason: "as 3", parent: undefined });
  });

  it("compares one that was merged with the newest that is not younger, and stores whole what that lacks", () => {
    const plan = planCopy([merged(full)], there);
    expect(plan).toMatchObject({ level: "incremental", parent: { id: "b2" } });
    expect(plan.disks).toMatchObject([{ mode: "compare", isCompared: true }, { mode: "whole" }]);
    expect(plan.disks.map((disk) => copiedSince(plan, disk))).toEqual([undefined, undefined]);
  });
});

describe("missingBackups", () => {
  const ids = (entries: readonly { readonly id: string }[]) => entries.map(({ id }) => id);

  it("counts from the newest copy, not from what the second repository has of its own", () => {
    const own = backup(9, { vda: "whole" });
    expect(ids(missingBackups(CHAIN, [own], { kind: "newer" }))).toEqual(["b1", "b2", "b3"]);
    const copy = backup(2, { vda: "whole" }, { copiedFrom: "default" });
    expect(ids(missingBackups(CHAIN, [copy, own], { kind: "newer" }))).toEqual(["b3"]);
    expect(ids(missingBackups(CHAIN, [copy], { kind: "ids", ids: ["b1", "b2"] }))).toEqual(["b1"]);
    expect(ids(missingBackups(CHAIN, [], { kind: "latest" }))).toEqual(["b3"]);
  });
});
