import { describe, expect, it } from "vitest";
import {
  type DomainSnapshot,
  type DomainSnapshots,
  filesOfDisk,
} from "../../../src/model/domain-snapshot.js";
import {
  afterMerge,
  type LayerFile,
  planLayerDeletion,
  withoutSnapshot,
} from "../../../src/model/layer-plan.js";

const MIB = 1 << 20;

function snapshot(name: string, file: string, parent?: string): DomainSnapshot {
  return {
    ...{ name, description: "", timeMs: 1, state: "inactive", kind: "external", live: false, pausedMs: 0 },
    ...(parent === undefined ? {} : { parent }),
    disks: [{ target: "vda", file, format: "qcow2", sizeBytes: MIB, bitmaps: [] }],
    clones: [],
  };
}

/** home <- a <- b (active), and c on a, too. */
const all: DomainSnapshots = {
  schemaVersion: 1,
  domain: "vm",
  current: "two",
  layers: [{ target: "vda", home: "/home", active: "/b", format: "qcow2" }],
  snapshots: [snapshot("one", "/home"), snapshot("two", "/a", "one"), snapshot("branch", "/c", "two")],
};

function file(path: string, backing?: string, allocatedBytes = 100): LayerFile {
  return { path, format: "qcow2", backing, sizeBytes: MIB, allocatedBytes };
}

const files = [file("/home", undefined, 10), file("/a", "/home"), file("/b", "/a"), file("/c", "/a")];

function plan(name: string, given = files, document = all): unknown {
  const found = document.snapshots.find((each) => each.name === name);
  if (found === undefined) throw new Error(`Expected ${name}`);
  return planLayerDeletion(document, found, given)[0];
}

describe("planLayerDeletion", () => {
  it("commits into the home file, whatever it costs, and rebases what was on the file that goes", () => {
    expect(plan("one")).toMatchObject({
      merges: [{ how: "commit", upper: "/a", lower: "/home", active: false, children: ["/b", "/c"] }],
    });
    expect(plan("one")).not.toHaveProperty("removed");
  });

  it("gives all users but one a copy, and the last one the file", () => {
    expect(plan("two")).toMatchObject({
      merges: [
        { how: "stream", upper: "/c", below: "/home" },
        { how: "commit", upper: "/b", active: true },
      ],
    });
  });

  it("moves what is less, and removes a file that nobody uses", () => {
    const large = files.map((each) => (each.path === "/b" ? file("/b", "/a", 101) : each));
    expect(plan("two", large)).toMatchObject({
      merges: [{ how: "stream" }, { how: "stream" }],
      removed: "/a",
    });
    expect(plan("branch")).toEqual({ target: "vda", merges: [], removed: "/c" });
  });

  it("commits no file that is the base of clones, or that somebody else made", () => {
    const clones = [{ directory: "/clone", timeMs: 1 }];
    const snapshots = all.snapshots.map((each) => (each.name === "two" ? { ...each, clones } : each));
    expect(plan("one", files, { ...all, snapshots })).toMatchObject({ merges: [{ how: "stream" }] });
    const stranger = [...files, file("/foreign", "/c", 1)];
    expect(plan("branch", stranger)).toMatchObject({ merges: [{ how: "stream", upper: "/foreign" }] });
  });

  it("only reads home files that QEMU does not write over, and those that are larger", () => {
    for (const home of [{ format: "vmdk", isReadOnly: true } as const, { sizeBytes: 2 * MIB }]) {
      const given = files.map((each) => (each.path === "/home" ? { ...each, ...home } : each));
      expect(plan("one", given)).toMatchObject({ merges: [{ how: "stream" }] });
      expect(plan("one", given)).not.toHaveProperty("removed");
    }
  });

  it("commits into a home file of another program's format, and the disk has that format then", () => {
    const given = files.map((each) => (each.path === "/home" ? { ...each, format: "vhdx" as const } : each));
    expect(plan("one", given)).toMatchObject({ merges: [{ how: "commit", lowerFormat: "vhdx" }] });
    const merge = { target: "vda", upper: "/b", lower: "/home", lowerFormat: "vhdx", active: true } as const;
    const merged = afterMerge(all, { ...merge, how: "commit", children: [], bitmaps: [] });
    expect(merged.layers[0]).toMatchObject({ active: "/home", format: "vhdx" });
  });
});

describe("The document", () => {
  it("names the file that stays after a commit, and follows the parent after a deletion", () => {
    const merge = { target: "vda", upper: "/b", lower: "/a", lowerFormat: "qcow2", active: true } as const;
    const merged = afterMerge(all, { ...merge, how: "commit", children: [], bitmaps: [] });
    expect(merged.layers[0]?.active).toBe("/a");
    const left = withoutSnapshot(merged, "two");
    expect(left.current).toBe("one");
    expect(left.snapshots.map(({ name, parent }) => [name, parent])).toEqual([
      ["one", undefined],
      ["branch", "one"],
    ]);
    expect(withoutSnapshot(withoutSnapshot(left, "one"), "branch")).not.toHaveProperty("current");
  });

  it("remembers the files that it does not name any more, for a QEMU whose arguments do", () => {
    const merge = { target: "vda", upper: "/b", lower: "/a", lowerFormat: "qcow2", active: true } as const;
    const merged = afterMerge(all, { ...merge, how: "commit", children: [], bitmaps: [] });
    expect(merged.layers[0]?.former).toEqual(["/b"]);
    const left = withoutSnapshot(merged, "branch");
    expect(left.layers[0]?.former).toEqual(["/b", "/c"]);
    expect(filesOfDisk(left, "vda").toSorted()).toEqual(filesOfDisk(all, "vda").toSorted());
  });
});
