import { describe, expect, it } from "vitest";
import type { CheckpointBitmap } from "../../../src/model/checkpoint.js";
import { parseBitmapName } from "../../../src/model/checkpoint.js";
import type { DiskState, DomainState } from "../../../src/model/snapshot-plan.js";
import { isOurNode, planSnapshot, snapshotNodes } from "../../../src/model/snapshot-plan.js";
import { randomId } from "../../../src/shared/ids.js";

function disk(target: string, bitmaps: readonly Partial<CheckpointBitmap>[] = []): DiskState {
  const checkpoints = bitmaps.map((bitmap, index) => ({
    name: `c${index}`,
    order: index + 1,
    timeMs: 1,
    bitmap: `fleece:1:${index + 1}:1:c${index}`,
    recording: false,
    inconsistent: false,
    busy: false,
    persistent: true,
    granularityBytes: 65536,
    ...bitmap,
  }));
  return { target, format: "qcow2", file: `/${target}`, sizeBytes: 1024, checkpoints, foreignBitmaps: [] };
}

function state(...disks: DiskState[]): DomainState {
  return { domain: "vm", mode: "running", disks };
}

describe("snapshotNodes", () => {
  it("keeps to the 31 characters of QEMU's node names for 10,000 disks", () => {
    const { scratch, filter, access, push } = snapshotNodes(randomId(8), 9999);
    for (const node of [scratch, filter, access, push]) {
      expect(node.length).toBeLessThanOrEqual(31);
      expect(isOurNode(node)).toBe(true);
    }
  });
});

describe("planSnapshot", () => {
  const request = { id: "abcdefgh", scratchDir: "/scratch" };

  it("names every node and scratch image differently", () => {
    const targets = Array.from({ length: 120 }, (_, index) => `sd${index}`);
    const plan = planSnapshot(state(...targets.map((target) => disk(target))), { ...request, targets });
    const names = plan.disks.flatMap(({ nodes, scratchPath }) => [
      nodes.scratch,
      nodes.filter,
      nodes.access,
      scratchPath,
    ]);
    expect(names.length).toBe(4 * 120);
    expect(new Set(names).size).toBe(names.length);
  });

  it("takes the chosen disks alone, with what they are", () => {
    const plan = planSnapshot(state(disk("vda"), disk("sdb")), { ...request, targets: ["sdb"] });
    expect(plan).toMatchObject({
      id: "abcdefgh",
      domain: "vm",
      disks: [
        { target: "sdb", format: "qcow2", sizeBytes: 1024, scratchPath: "/scratch/abcdefgh-sdb.qcow2" },
      ],
    });
    expect(plan.checkpoint).toBeUndefined();
  });

  it("stops every bitmap that records, and no inconsistent one", () => {
    const bitmaps = [{ recording: true }, { recording: true, inconsistent: true }, {}, { recording: true }];
    const plan = planSnapshot(state(disk("vda", bitmaps)), { ...request, targets: ["vda"] });
    expect(plan.disks[0]?.previousBitmaps.map((bitmap) => parseBitmapName(bitmap)?.name)).toEqual([
      "c0",
      "c3",
    ]);
  });

  it("orders the new checkpoint after those of all disks, also of disks left out", () => {
    const plan = planSnapshot(state(disk("vda", [{}]), disk("sdb", [{}, { order: 41 }])), {
      ...request,
      targets: ["vda"],
      checkpoint: { name: "new", timeMs: 5 },
    });
    expect(plan.checkpoint).toEqual({ name: "new", timeMs: 5, order: 42 });
  });
});
