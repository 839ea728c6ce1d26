import { describe, expect, it } from "vitest";
import { bitmapName } from "../../../src/model/checkpoint.js";
import {
  type DomainSnapshot,
  type DomainSnapshots,
  noSnapshots,
} from "../../../src/model/domain-snapshot.js";
import {
  bitmapToCarry,
  costOfRevert,
  documentAfterRevert,
  machineDifferences,
  type RevertFacts,
} from "../../../src/model/revert-plan.js";
import type { DomainState } from "../../../src/model/snapshot-plan.js";

const bitmap = (name: string, order: number): string => bitmapName({ name, order, timeMs: 1 });

function snapshot(name: string, file: string, more: Partial<DomainSnapshot> = {}): DomainSnapshot {
  return {
    ...{
      name,
      description: "",
      timeMs: 1,
      state: "running",
      kind: "external",
      live: false,
      pausedMs: 0,
      clones: [],
    },
    disks: [{ target: "vda", file, format: "qcow2", sizeBytes: 100, bitmaps: [] }],
    ...more,
  };
}

const machine = {
  type: "pc-q35-7.2",
  cpu: "qemu64",
  cpus: 1,
  memoryBytes: 64,
  qemuVersion: "7.2.22",
  devices: ["a 0 -"],
};

function present(...checkpoints: readonly [string, number][]): DomainState {
  const disk = { target: "vda", format: "qcow2" as const, file: "/a2", sizeBytes: 100, foreignBitmaps: [] };
  const listed = checkpoints.map(([name, order]) => ({
    ...{ name, order, timeMs: 1, bitmap: bitmap(name, order), recording: true, inconsistent: false },
    ...{ busy: false, persistent: true, granularityBytes: 65536 },
  }));
  return { domain: "vm", mode: "running", disks: [{ ...disk, checkpoints: listed }] };
}

const bitmapsOf = (file: string, bitmaps: readonly string[]) => [
  { target: "vda", file, format: "qcow2" as const, sizeBytes: 100, bitmaps },
];

/** Two snapshots, a chain: s1 is the file /a, s2 is /a1, and the guest is in /a2. */
function facts(more: Partial<RevertFacts> = {}): RevertFacts {
  const s1 = snapshot("s1", "/a", { disks: bitmapsOf("/a", [bitmap("c1", 1)]) });
  const s2 = snapshot("s2", "/a1", {
    parent: "s1",
    disks: bitmapsOf("/a1", [bitmap("c1", 1), bitmap("c2", 2)]),
  });
  const all: DomainSnapshots = {
    ...noSnapshots("vm"),
    current: "s2",
    layers: [{ target: "vda", home: "/a", active: "/a2", format: "qcow2" }],
    snapshots: [s1, s2],
  };
  return { all, snapshot: s2, force: false, nowMs: 5000, present: present(), machine, ...more };
}

describe("costOfRevert", () => {
  it("ends the checkpoints made after the snapshot, and none before it", () => {
    const now = present(["c1", 1], ["c2", 2], ["c3", 3]);
    const { all } = facts();
    expect(costOfRevert(facts({ present: now }))).toEqual({
      keptAs: "before-s2-5",
      endedCheckpoints: ["c3"],
      risks: ["these checkpoints end: c3"],
    });
    const [s1] = all.snapshots;
    expect(costOfRevert(facts({ present: now, snapshot: s1 ?? snapshot("", "") })).endedCheckpoints).toEqual([
      "c2",
      "c3",
    ]);
  });

  it("ends all checkpoints of a disk that is raw in the snapshot", () => {
    const raw = snapshot("r", "/a", {
      disks: [{ target: "vda", file: "/a", format: "raw", sizeBytes: 1, bitmaps: [bitmap("c1", 1)] }],
    });
    expect(costOfRevert(facts({ snapshot: raw, present: present(["c1", 1]) })).endedCheckpoints).toEqual([
      "c1",
    ]);
  });

  it("names disks that the snapshot does not have, and a machine that differs", () => {
    const other = snapshot("s", "/b", {
      disks: [],
      machine: { ...machine, devices: ["b 1 x"], memoryBytes: 32, arguments: [] },
    });
    expect(costOfRevert(facts({ snapshot: other })).risks).toEqual([
      "disk vda is not in the snapshot and stays as it is",
      "memory in bytes was 32, and is 64 now",
      "device b 1 x is missing now",
      "device a 0 - was not there",
    ]);
  });

  it("keeps nothing if it is forced, and else takes a name that is free", () => {
    expect(costOfRevert(facts({ force: true }))).not.toHaveProperty("keptAs");
    const given = facts();
    const all = { ...given.all, snapshots: [...given.all.snapshots, snapshot("before-s2-5", "/x")] };
    expect(costOfRevert({ ...given, all }).keptAs).toBe("before-s2-6");
  });
});

describe("documentAfterRevert", () => {
  const reverted = (given: RevertFacts) => given.snapshot.disks.map((disk) => ({ disk, overlay: "/r1" }));

  it("puts the disks into the new overlays and keeps what was before as a branch", () => {
    const given = facts({ present: present(["c1", 1]) });
    const { document, obsolete } = documentAfterRevert(given, costOfRevert(given), reverted(given));
    expect(obsolete).toEqual([]);
    expect(document).toMatchObject({
      current: "s2",
      layers: [{ target: "vda", home: "/a", active: "/r1", format: "qcow2" }],
    });
    expect(document.snapshots.at(-1)).toMatchObject({
      ...{ name: "before-s2-5", parent: "s2", state: "running", consistency: "crash", keptByRevert: true },
      disks: bitmapsOf("/a2", [bitmap("c1", 1)]),
    });
  });

  it("forgets the present overlay if it is not kept, and never a file of a snapshot or the disk's own", () => {
    const given = facts({ force: true });
    expect(documentAfterRevert(given, costOfRevert(given), reverted(given)).obsolete).toEqual(["/a2"]);
    for (const active of ["/a", "/a1"]) {
      const layers = [{ target: "vda", home: "/a", active, format: "qcow2" as const }];
      const held = facts({ force: true, all: { ...given.all, layers } });
      expect(documentAfterRevert(held, costOfRevert(held), reverted(held)).obsolete).toEqual([]);
    }
  });

  it("remembers former files as long as the arguments that a snapshot recorded name them", () => {
    const given = facts();
    const [s1, s2] = given.all.snapshots;
    const recorded = { ...machine, arguments: ["qemu", "-hda", "a3"] };
    const all = {
      ...given.all,
      layers: given.all.layers.map((layers) => ({ ...layers, former: ["/a3", "/a4"] })),
      snapshots: [
        ...(s1 === undefined ? [] : [{ ...s1, machine: recorded }]),
        ...(s2 === undefined ? [] : [s2]),
      ],
    };
    const after = documentAfterRevert({ ...given, all }, costOfRevert(given), reverted(given));
    expect(after.document.layers[0]?.former).toEqual(["/a3"]);
  });

  it("leaves the layers of disks alone that are not in the snapshot", () => {
    const given = facts();
    const other = { target: "vdb", home: "/b", active: "/b1", format: "qcow2" as const };
    const all = { ...given.all, layers: [...given.all.layers, other] };
    const { document } = documentAfterRevert({ ...given, all }, costOfRevert(given), reverted(given));
    expect(document.layers).toContainEqual(other);
  });
});

describe("bitmapToCarry", () => {
  it.each([
    ["qcow2", [bitmap("c1", 1), bitmap("c2", 2)], bitmap("c2", 2)],
    ["qcow2", [], undefined],
    ["qcow2", ["theirs"], undefined],
    ["raw", [bitmap("c1", 1)], undefined],
  ] as const)("is the one that recorded, of a %s image with %j", (format, bitmaps, expected) => {
    expect(bitmapToCarry({ target: "vda", file: "/a", format, sizeBytes: 1, bitmaps })).toBe(expected);
  });
});

describe("machineDifferences", () => {
  it("does not ask for the same version of QEMU, whose machine types are versioned themselves", () => {
    expect(machineDifferences(machine, { ...machine, qemuVersion: "10.0.0" })).toEqual([]);
  });
});
