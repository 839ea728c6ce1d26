import { describe, expect, it } from "vitest";
import type { BackupEntry, IntactEntry, Manifest, ManifestDisk } from "../../../src/model/backup.js";
import { byTime, chainOf, childrenOf } from "../../../src/model/backup.js";
import { decideLevel } from "../../../src/model/level.js";
import type { DiskState } from "../../../src/model/snapshot-plan.js";

function manifestDisk(target: string, sizeBytes: number): ManifestDisk {
  const bytes = { readBytes: 0, storedBytes: 0, zeroBytes: 0, durationMs: 0 };
  const digests = { digests: "d", digestsSha256: "0", digestBlockBytes: 65536 };
  return { target, sourceFormat: "qcow2", sizeBytes, image: "i", ...digests, ...bytes };
}

function backup(id: string, changes: Partial<Manifest> = {}): IntactEntry {
  const time = `2026-01-0${id.slice(1)}T00:00:00.000Z`;
  const manifest: Manifest = {
    schemaVersion: 1,
    id,
    domain: "vm",
    level: changes.parent === undefined ? "full" : "incremental",
    reason: "",
    time,
    startedAt: time,
    finishedAt: time,
    consistency: "crash",
    heldMs: 0,
    checkpoint: `c-${id}`,
    disks: [manifestDisk("vda", 1024)],
    ...changes,
  };
  return { repository: "default", domain: "vm", id, manifest };
}

function damaged(id: string): BackupEntry {
  return { repository: "default", domain: "vm", id, damage: "no manifest" };
}

function disk(checkpoints: readonly string[], changes: Partial<DiskState> = {}): DiskState {
  return {
    target: "vda",
    format: "qcow2",
    file: "/vda",
    sizeBytes: 1024,
    foreignBitmaps: [],
    checkpoints: checkpoints.map((name, index) => ({
      name,
      order: index + 1,
      timeMs: 1,
      bitmap: `bitmap-${name}`,
      recording: index === checkpoints.length - 1,
      inconsistent: false,
      busy: false,
      persistent: true,
      granularityBytes: 65536,
    })),
    ...changes,
  };
}

describe("chainOf", () => {
  const entries = [backup("b3", { parent: "b2" }), backup("b1"), backup("b2", { parent: "b1" })];

  it("goes back to the full, which comes first", () => {
    expect(chainOf(entries, "b3")).toMatchObject({
      complete: true,
      entries: [{ id: "b1" }, { id: "b2" }, { id: "b3" }],
    });
  });

  it.each([
    ["a missing parent", [backup("b2", { parent: "b1" })], "b2", "backup b1 is missing"],
    ["an unknown backup", entries, "b9", "backup b9 is missing"],
    [
      "a damaged parent",
      [damaged("b1"), backup("b2", { parent: "b1" })],
      "b2",
      "backup b1 is damaged: no manifest",
    ],
    [
      "a circle",
      [backup("b1", { parent: "b2" }), backup("b2", { parent: "b1" })],
      "b2",
      "backup b2 is its own ancestor",
    ],
  ])("is incomplete with %s", (_, listed, id, reason) => {
    expect(chainOf(listed, id)).toEqual({ complete: false, reason });
  });
});

describe("childrenOf", () => {
  it("finds what is directly based on a backup", () => {
    const entries = [
      backup("b1"),
      backup("b2", { parent: "b1" }),
      backup("b3", { parent: "b2" }),
      damaged("b4"),
    ];
    expect(childrenOf(entries, "b1").map(({ id }) => id)).toEqual(["b2"]);
  });
});

describe("byTime", () => {
  it("sorts by the frozen moment, then by id", () => {
    const same = { time: "2026-01-05T00:00:00.000Z" };
    const sorted = [
      backup("b3", same),
      backup("b2", same),
      backup("b9", { time: "2025-01-01T00:00:00.000Z" }),
    ];
    expect(sorted.toSorted(byTime).map(({ id }) => id)).toEqual(["b9", "b2", "b3"]);
  });
});

describe("decideLevel", () => {
  const entries = [backup("b1"), backup("b2", { parent: "b1" })];

  it("bases an incremental on the newest backup, with the bitmaps of all that changed since", () => {
    expect(decideLevel([disk(["c-b1", "c-b2", "later"])], entries)).toEqual({
      level: "incremental",
      reason: "based on backup b2",
      parent: entries[1],
      changes: new Map([["vda", ["bitmap-c-b2", "bitmap-later"]]]),
    });
  });

  it("takes the newest by time, not the last that is listed", () => {
    const decision = decideLevel([disk(["c-b1", "c-b2"])], entries.toReversed());
    expect(decision).toMatchObject({ level: "incremental", parent: { id: "b2" } });
  });

  it.each([
    ["whose checkpoint is gone", [disk(["c-b1", "later"])], entries],
    ["that lacks the disk", [disk(["c-b1", "c-b2"])], [backup("b1"), backup("b2", { disks: [] })]],
    ["whose chain is broken", [disk(["c-b1", "c-b2"])], [backup("b1"), backup("b2", { parent: "b0" })]],
  ])("passes over a backup %s for an older one that fits", (_, disks, listed) => {
    const changes = new Map([["vda", disks[0]?.checkpoints.map(({ bitmap }) => bitmap)]]);
    expect(decideLevel(disks, listed)).toMatchObject({ level: "incremental", parent: { id: "b1" }, changes });
  });

  it.each([
    ["a full was asked for", [disk(["c-b1", "c-b2"])], entries, "full" as const],
    ["the repository has no backup of the domain yet", [disk([])], [], undefined],
    ["no backup of the domain in the repository is intact", [disk([])], [damaged("b1")], undefined],
    ["the chain is broken: backup b1 is missing", [disk(["c-b2"])], [entries[1] ?? damaged("b2")], undefined],
    [
      "backup b2 does not hold disk sdb",
      [disk(["c-b2"]), disk(["c-b2"], { target: "sdb" })],
      entries,
      undefined,
    ],
    [
      "disk vda has 2048 bytes and had 1024 in backup b2",
      [disk(["c-b2"], { sizeBytes: 2048 })],
      entries,
      undefined,
    ],
    ["disk vda: checkpoint c-b2 does not exist on the disk", [disk(["other"])], entries, undefined],
    [
      "disk sdb: checkpoint c-b2 does not exist on the disk",
      [disk(["c-b2"]), disk([], { target: "sdb" })],
      [backup("b2", { disks: [manifestDisk("vda", 1024), manifestDisk("sdb", 1024)] })],
      undefined,
    ],
  ])("takes a full because %s", (reason, disks, listed, requested) => {
    expect(decideLevel(disks, listed, requested)).toEqual({ level: "full", reason });
  });
});
