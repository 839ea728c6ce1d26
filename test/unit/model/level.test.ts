import { describe, expect, it } from "vitest";
import type { BackupEntry, IntactEntry, Manifest, ManifestDisk } from "../../../src/model/backup.js";
import { byTime, chainOf, chainOfDisk, childrenOf } from "../../../src/model/backup.js";
import type { CheckpointBitmap } from "../../../src/model/checkpoint.js";
import { decideLevel } from "../../../src/model/level.js";
import type { DiskState } from "../../../src/model/snapshot-plan.js";

function manifestDisk(target: string, sizeBytes: number): ManifestDisk {
  const bytes = { readBytes: 0, storedBytes: 0, zeroBytes: 0, durationMs: 0 };
  const digests = { digests: "d", digestsSha256: "0", digestBlockBytes: 65536 };
  const how = { mode: "changes", reason: "" } as const;
  return {
    target,
    sourceFormat: "qcow2",
    sourceFile: `/${target}`,
    sizeBytes,
    image: "i",
    ...how,
    ...digests,
    ...bytes,
  };
}

function moved(sourceFile: string): Partial<Manifest> {
  return { disks: [{ ...manifestDisk("vda", 1024), sourceFile }] };
}

function backup(id: string, changes: Partial<Manifest> = {}): IntactEntry {
  const time = `2026-01-0${id.slice(1)}T00:00:00.000Z`;
  const manifest: Manifest = {
    schemaVersion: 2,
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
    file: `/${changes.target ?? "vda"}`,
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

/** Whose newest bitmap is as told. */
function broken(checkpoints: readonly string[], newest: Partial<CheckpointBitmap>): DiskState {
  const sound = disk(checkpoints);
  const last = sound.checkpoints.at(-1);
  return last === undefined
    ? sound
    : { ...sound, checkpoints: [...sound.checkpoints.slice(0, -1), { ...last, ...newest }] };
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
  it("sorts by the frozen moment, then by id, damaged backups first", () => {
    const same = { time: "2026-01-05T00:00:00.000Z" };
    const sorted = [
      backup("b3", same),
      backup("b2", same),
      backup("b9", { time: "2025-01-01T00:00:00.000Z" }),
      damaged("b5"),
      damaged("b4"),
    ];
    expect(sorted.toSorted(byTime).map(({ id }) => id)).toEqual(["b4", "b5", "b9", "b2", "b3"]);
  });
});

describe("chainOfDisk", () => {
  it("begins where the disk was stored whole last", () => {
    const whole = [manifestDisk("vda", 1024), { ...manifestDisk("sdb", 1024), mode: "whole" as const }];
    const chain = [
      backup("b1", { disks: [{ ...manifestDisk("vda", 1024), mode: "whole" }] }),
      backup("b2", { parent: "b1", disks: whole }),
      backup("b3", { parent: "b2", disks: [manifestDisk("vda", 1024), manifestDisk("sdb", 1024)] }),
    ];
    expect(chainOfDisk(chain, "vda").map(({ id }) => id)).toEqual(["b1", "b2", "b3"]);
    expect(chainOfDisk(chain, "sdb").map(({ id }) => id)).toEqual(["b2", "b3"]);
  });
});

describe("decideLevel", () => {
  const entries = [backup("b1"), backup("b2", { parent: "b1" })];
  const both = [manifestDisk("vda", 1024), manifestDisk("sdb", 1024)];
  const known = "its changes since backup b2 are known without a gap";

  it("bases an incremental on the newest backup, with the bitmaps of all that changed since", () => {
    const bitmaps = ["bitmap-c-b2", "bitmap-later"];
    expect(decideLevel([disk(["c-b1", "c-b2", "later"])], entries)).toEqual({
      level: "incremental",
      reason: "based on backup b2",
      parent: entries[1],
      disks: new Map([["vda", { mode: "changes", reason: known, bitmaps }]]),
    });
  });

  it("takes the newest by time, not the last that is listed", () => {
    const decision = decideLevel([disk(["c-b1", "c-b2"])], entries.toReversed());
    expect(decision).toMatchObject({ level: "incremental", parent: { id: "b2" } });
  });

  it.each([
    ["whose checkpoint is gone", [disk(["c-b1", "later"])], entries],
    ["whose image was another", [disk(["c-b1", "c-b2"])], [backup("b1"), backup("b2", moved("/old"))]],
    ["that lacks the disk", [disk(["c-b1", "c-b2"])], [backup("b1"), backup("b2", { disks: [] })]],
    ["whose chain is broken", [disk(["c-b1", "c-b2"])], [backup("b1"), backup("b2", { parent: "b0" })]],
  ])("passes over a backup %s for an older one that bitmaps reach", (_, disks, listed) => {
    const bitmaps = disks[0]?.checkpoints.map(({ bitmap }) => bitmap);
    expect(decideLevel(disks, listed)).toMatchObject({
      level: "incremental",
      parent: { id: "b1" },
      disks: new Map([["vda", expect.objectContaining({ mode: "changes", bitmaps })]]),
    });
  });

  const compared = "is read whole and compared with it:";
  const whole = "is stored whole:";

  it.each<[string, DiskState[], BackupEntry[], Record<string, string>, string]>([
    [
      "absent",
      [disk(["other"])],
      entries,
      { vda: "compare" },
      `${compared} checkpoint c-b2 does not exist on the disk`,
    ],
    [
      "gone with all others",
      [disk([])],
      entries,
      { vda: "compare" },
      `${compared} checkpoint c-b2 does not exist on the disk`,
    ],
    [
      "inconsistent",
      [broken(["c-b1", "c-b2"], { inconsistent: true, recording: false })],
      entries,
      { vda: "compare" },
      `${compared} checkpoint c-b2 is inconsistent: QEMU ended without saving it`,
    ],
    [
      "no longer recording",
      [broken(["c-b1", "c-b2"], { recording: false })],
      entries,
      { vda: "compare" },
      `${compared} checkpoint c-b2 has stopped recording`,
    ],
    [
      "in another image",
      [disk(["c-b2"])],
      [backup("b2", moved("/old"))],
      { vda: "compare" },
      `${compared} its image is /vda and was /old in backup b2`,
    ],
    [
      "lost on one of two disks",
      [disk(["c-b2"]), disk([], { target: "sdb" })],
      [backup("b2", { disks: both })],
      { vda: "changes", sdb: "compare" },
      `; disk sdb ${compared} checkpoint c-b2 does not exist on the disk`,
    ],
    [
      "not there, as the disk is new",
      [disk(["c-b2"]), disk([], { target: "sdb" })],
      entries,
      { vda: "changes", sdb: "whole" },
      `; disk sdb ${whole} backup b2 does not hold it`,
    ],
    [
      "of another size",
      [disk(["c-b2"]), disk(["c-b2"], { target: "sdb", sizeBytes: 2048 })],
      [backup("b2", { disks: both })],
      { vda: "changes", sdb: "whole" },
      `; disk sdb ${whole} it has 2048 bytes and had 1024 in backup b2`,
    ],
  ])("reads a disk from end to end whose checkpoint is %s", (_, disks, listed, modes, reason) => {
    const decision = decideLevel(disks, listed);
    expect(decision).toMatchObject({ level: "incremental", parent: { id: "b2" } });
    expect(Object.fromEntries([...decision.disks].map(([target, { mode }]) => [target, mode]))).toEqual(
      modes,
    );
    expect(decision.reason).toContain("based on backup b2; disk ");
    expect(decision.reason).toContain(reason);
    for (const [, { mode, reason: each }] of decision.disks) {
      if (mode !== "changes") expect(reason).toContain(each);
    }
  });

  it("gives a reason of bounded length for any number of disks", () => {
    const disks = Array.from({ length: 500 }, (_, index) => disk([], { target: `sd${index}` }));
    for (const sizeBytes of [1024, 2048]) {
      const listed = [backup("b1", { disks: disks.map(({ target }) => manifestDisk(target, sizeBytes)) })];
      const { level, reason } = decideLevel(disks, listed);
      expect(level).toBe(sizeBytes === 1024 ? "incremental" : "full");
      expect(reason).toMatch(/^.{2000}…$/);
    }
  });

  const pair = { disks: both };
  const lost = ["c-b9"];
  it.each<[string, string, DiskState[], BackupEntry[]]>([
    [
      "the older, if all bitmaps reach so far",
      "b3",
      [disk(["c-b3", "c-b5"]), disk(["c-b3"], { target: "sdb" })],
      [backup("b3", pair), backup("b5", pair)],
    ],
    [
      "the newer, if the older would mean reading as much",
      "b5",
      [disk(["c-b3", "c-b5"]), disk(lost, { target: "sdb" })],
      [backup("b3", pair), backup("b5", pair)],
    ],
    [
      "the newer, if its bitmaps alone reach the larger disk",
      "b5",
      [disk(["c-b5"], { sizeBytes: 4096 }), disk(["c-b3"], { target: "sdb" })],
      [
        backup("b3", { disks: [manifestDisk("vda", 4096), both[1] ?? manifestDisk("sdb", 0)] }),
        backup("b5", { disks: [manifestDisk("vda", 4096), both[1] ?? manifestDisk("sdb", 0)] }),
      ],
    ],
    [
      "the older, if a disk can be compared there and must be stored whole else",
      "b3",
      [disk(lost), disk(lost, { target: "sdb" })],
      [backup("b3", pair), backup("b5")],
    ],
    [
      "the newer, if a new disk is stored whole on either",
      "b5",
      [disk(["c-b3", "c-b5"]), disk([], { target: "sdc" })],
      [backup("b3"), backup("b5")],
    ],
  ])("bases an incremental on %s", (_, id, disks, listed) => {
    expect(decideLevel(disks, listed)).toMatchObject({ level: "incremental", parent: { id } });
  });

  it.each([
    ["a full was asked for", [disk(["c-b1", "c-b2"])], entries, "full" as const],
    ["the repository has no backup of the domain yet", [disk([])], [], undefined],
    ["no backup of the domain in the repository is intact", [disk([])], [damaged("b1")], undefined],
    ["the chain is broken: backup b1 is missing", [disk(["c-b2"])], [entries[1] ?? damaged("b2")], undefined],
    ["disk sdb: backup b2 does not hold it", [disk(["c-b2"], { target: "sdb" })], entries, undefined],
    [
      "disk vda: it has 2048 bytes and had 1024 in backup b2",
      [disk(["c-b2"], { sizeBytes: 2048 })],
      entries,
      undefined,
    ],
  ])("takes a full, with every disk whole, because %s", (reason, disks, listed, requested) => {
    const decisions = disks.map(({ target }) => [target, { mode: "whole", reason }] as const);
    expect(decideLevel(disks, listed, requested)).toEqual({
      level: "full",
      reason,
      disks: new Map(decisions),
    });
  });
});

describe("decideLevel after domain snapshots", () => {
  it("passes over newer backups of a state that was reverted, and says so", () => {
    const entries = [backup("b1"), backup("b2", { parent: "b1" }), backup("b3", { parent: "b2" })];
    const decision = decideLevel([disk(["c-b1"])], entries);
    expect(decision).toMatchObject({ level: "incremental", parent: { id: "b1" } });
    expect(decision.reason).toBe(
      "based on backup b1; backup b3 is newer, but on it disk vda would be compared: checkpoint c-b3 does not exist on the disk",
    );
    expect(decision.disks.get("vda")).toMatchObject({ mode: "changes", bitmaps: ["bitmap-c-b1"] });
  });

  it("compares a disk that is in another image than they say, whatever its bitmaps tell", () => {
    const otherLayer = { expected: "/new", found: "/old", frozen: true };
    const decision = decideLevel([disk(["c-b1"], { otherLayer })], [backup("b1")]);
    expect(decision.disks.get("vda")).toEqual({
      mode: "compare",
      reason: "its image is /old, but by its domain snapshots it should be /new",
    });
  });

  it("compares a disk whose checkpoint is lost or deleted", () => {
    const lost = decideLevel([broken(["c-b1"], { lost: "there is a gap" })], [backup("b1")]);
    expect(lost.disks.get("vda")).toEqual({ mode: "compare", reason: "there is a gap" });
    const deleted = decideLevel([broken(["c-b1"], { deleted: true, place: "both" })], [backup("b1")]);
    expect(deleted.disks.get("vda")).toMatchObject({ mode: "compare" });
  });
});
