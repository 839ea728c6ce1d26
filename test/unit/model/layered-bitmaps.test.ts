import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { CheckpointBitmap } from "../../../src/model/checkpoint.js";
import {
  bitmapName,
  changesSince,
  deadBitmaps,
  isUnusable,
  nextOrder,
  parseBitmapName,
  planDeletion,
} from "../../../src/model/checkpoint.js";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import { bitmapsOverLayers, type ReportedLayer } from "../../../src/model/layered-bitmaps.js";
import { FakeDisk } from "../../support/fake-disk.js";

const BLOCKS = 8;

function name(order: number): string {
  return bitmapName({ name: `c${order}`, order, timeMs: order });
}

function layer(file: string, bitmaps: Parameters<typeof reportedBitmap>[], remembered?: string[]) {
  return {
    file,
    sizeBytes: BLOCKS * BLOCK_SIZE,
    bitmaps: bitmaps.map((each) => reportedBitmap(...each)),
    ...(remembered === undefined ? {} : { remembered }),
  } satisfies ReportedLayer;
}

function reportedBitmap(bitmap: string, flags = "", dirtyBlocks = 1): ReportedLayer["bitmaps"][number] {
  return {
    bitmap,
    recording: flags.includes("r"),
    inconsistent: flags.includes("i"),
    busy: false,
    persistent: true,
    granularityBytes: BLOCK_SIZE,
    dirtyBytes: dirtyBlocks * BLOCK_SIZE,
  };
}

function validity(checkpoints: readonly CheckpointBitmap[]): Record<string, string> {
  return Object.fromEntries(
    checkpoints.map(({ name: checkpoint }) => {
      const since = changesSince(checkpoints, checkpoint);
      return [checkpoint, since.valid ? "valid" : since.reason];
    }),
  );
}

describe("bitmapsOverLayers", () => {
  it("is the list of the image where there is only one", () => {
    const { checkpoints, foreignBitmaps } = bitmapsOverLayers([
      layer("/a", [[name(2), "r"], [name(1)], ["other"]]),
    ]);
    expect(checkpoints.map(({ order, place }) => [order, place])).toEqual([
      [1, undefined],
      [2, undefined],
    ]);
    expect(foreignBitmaps).toEqual(["other"]);
  });

  it("unites the bitmaps of a checkpoint that goes on in the image above", () => {
    const { checkpoints } = bitmapsOverLayers([
      layer("/b", [
        [name(2), "", 3],
        [name(3), "r"],
      ]),
      layer("/a", [[name(1), "", 1], [name(2), "r", 2], ["other"]]),
    ]);
    expect(checkpoints).toMatchObject([
      { name: "c1", place: "below", recording: false, dirtyBytes: BLOCK_SIZE },
      { name: "c2", place: "both", recording: false, dirtyBytes: 5 * BLOCK_SIZE },
      { name: "c3", recording: true, dirtyBytes: BLOCK_SIZE },
    ]);
    expect(validity(checkpoints)).toEqual({ c1: "valid", c2: "valid", c3: "valid" });
  });

  it.each([
    ["the image above has none of ours", [], [[name(2), "r"]], "c2", "does not go on in /b"],
    ["the bitmap that went on is inconsistent", [[name(2), "ri"]], [[name(2), "r"]], "c2", "inconsistent"],
    ["the frozen one did not record", [[name(2), "r"]], [[name(2)]], "c2", "did not record"],
    [
      "the image below has one that is newer",
      [[name(2)], [name(3), "r"]],
      [[name(2)], [name(4), "r"]],
      "c3",
      "was written to after /b",
    ],
    [
      "another one has the same number",
      [[name(2), "r"]],
      [["fleece:1:2:2:other", "r"]],
      "c2",
      "was written to",
    ],
  ] as const)("tells of a gap when %s", (_, upper, lower, checkpoint, reason) => {
    const copy = (bitmaps: readonly (readonly [string, string?])[]) =>
      bitmaps.map(([bitmap, flags]): [string, string] => [bitmap, flags ?? ""]);
    const { checkpoints } = bitmapsOverLayers([layer("/b", copy(upper)), layer("/a", copy(lower))]);
    expect(validity(checkpoints)[checkpoint]).toContain(reason);
  });

  it("knows by what the snapshot remembers that an image has lost its bitmaps", () => {
    const top = layer("/b", [[name(1)], [name(2), "r"]]);
    const { checkpoints } = bitmapsOverLayers([top, layer("/a", [], [name(1)])]);
    expect(validity(checkpoints)).toEqual({
      c1: "checkpoint c1 is not in /a any more",
      c2: "valid",
    });
    const unknown = bitmapsOverLayers([top, layer("/a", [])]);
    expect(validity(unknown.checkpoints)).toEqual({ c1: "valid", c2: "valid" });
  });

  it("does not unite images of different sizes", () => {
    const small = { ...layer("/a", [[name(1), "r"]]), sizeBytes: BLOCK_SIZE };
    const { checkpoints } = bitmapsOverLayers([layer("/b", [[name(1)], [name(2), "r"]]), small]);
    expect(validity(checkpoints)["c1"]).toContain("bytes");
    expect(validity(checkpoints)["c2"]).toBe("valid");
  });

  it("leaves out what a gap has cost once the present image has a checkpoint of its own", () => {
    const base = layer("/a", [[name(1)], [name(2), "r"]]);
    expect(bitmapsOverLayers([layer("/b", []), base]).checkpoints).toHaveLength(2);
    const { checkpoints } = bitmapsOverLayers([layer("/b", [[name(3), "r"]]), base]);
    expect(validity(checkpoints)).toEqual({ c3: "valid" });
    expect(nextOrder([checkpoints])).toBe(4);
  });
});

/** A disk in layers, against a list of all that was written. */
class LayeredDisk {
  /** The lowest first. */
  #layers = [{ disk: this.#newDisk(), remembered: undefined as readonly string[] | undefined, logLength: 0 }];
  /** Blocks, and names of checkpoints at the moment that they were made. */
  #log: (number | string)[] = [];
  #deleted = new Set<string>();
  #made = 0;
  /** Whether something has happened that may cost checkpoints. */
  damaged = false;

  write(block: number): void {
    this.#top.disk.fill(block * BLOCK_SIZE, 1, 1);
    this.#log.push(block);
  }

  checkpoint(): void {
    for (const { bitmap, place } of deadBitmaps(this.state())) {
      if (place !== "below") this.#apply({ action: "remove", bitmap });
    }
    const state = this.state();
    const order = nextOrder([state]);
    this.#made++;
    const id = { name: `n${this.#made}`, order, timeMs: 1 };
    const bitmap = bitmapName(id);
    this.#apply({ action: "add", bitmap, persistent: true, granularityBytes: BLOCK_SIZE });
    for (const { bitmap: old } of state.filter(({ recording, inconsistent }) => recording && !inconsistent)) {
      this.#apply({ action: "disable", bitmap: old });
    }
    this.#log.push(id.name);
  }

  delete(index: number): void {
    const state = this.state().filter(({ deleted }) => deleted !== true);
    const doomed = state[index % Math.max(state.length, 1)];
    if (doomed === undefined) return;
    const plan = planDeletion(this.state(), doomed.name);
    if (!plan.possible) return;
    for (const step of plan.steps) this.#apply(step);
    this.#deleted.add(doomed.name);
  }

  /** An overlay that goes on with what records, as domain snapshots make it, or without, as other programs do. */
  overlay(carries: boolean): void {
    const { disk } = this.#top;
    const names = [...disk.bitmaps].filter(([bitmap]) => parseBitmapName(bitmap) !== undefined);
    this.#top.remembered = names.map(([bitmap]) => bitmap);
    this.#top.logLength = this.#log.length;
    const next = this.#newDisk();
    for (const [bitmap, { recording, inconsistent }] of names) {
      if (carries && recording && !inconsistent)
        next.apply({ action: "add", bitmap, persistent: true, granularityBytes: BLOCK_SIZE }, false);
    }
    this.#layers.push({ disk: next, remembered: undefined, logLength: 0 });
    if (!carries && names.length > 0) this.damaged = true;
  }

  /** Back to what the layer below held when it was frozen, on a new overlay. */
  revert(): void {
    if (this.#layers.length === 1) return;
    this.#layers.pop();
    this.#log = this.#log.slice(0, this.#top.logLength);
    const damaged = this.damaged;
    this.overlay(true);
    this.damaged = damaged;
  }

  /** The layer above goes into the one below it, with all bitmaps but lost ones: what deleting a domain snapshot does. */
  merge(index: number): void {
    if (this.#layers.length === 1) return;
    const at = index % (this.#layers.length - 1);
    const [lower, upper] = this.#layers.slice(at, at + 2);
    if (lower === undefined || upper === undefined) return;
    const ours = [...upper.disk.bitmaps];
    const state = this.state();
    const lost = (bitmap: string): boolean =>
      parseBitmapName(bitmap) !== undefined &&
      !state.some((known) => known.bitmap === bitmap && !isUnusable(known));
    if ([...ours, ...lower.disk.bitmaps].some(([, { inconsistent }]) => inconsistent)) return;
    for (const [bitmap] of lower.disk.bitmaps) lower.disk.apply({ action: "disable", bitmap }, false);
    for (const [bitmap, { blocks, recording }] of ours) {
      if (!lower.disk.bitmaps.has(bitmap))
        lower.disk.apply({ action: "add", bitmap, persistent: true, granularityBytes: BLOCK_SIZE }, false);
      lower.disk.apply({ action: recording ? "enable" : "disable", bitmap }, false);
      for (const block of blocks) lower.disk.bitmaps.get(bitmap)?.blocks.add(block);
    }
    for (const bitmap of lower.disk.bitmaps.keys())
      if (lost(bitmap)) lower.disk.apply({ action: "remove", bitmap }, false);
    // What both had is remembered, not what is left of it: see `afterMerge` in layer-plan.ts.
    const remembered = upper.remembered && [...new Set([...(lower.remembered ?? []), ...upper.remembered])];
    this.#layers.splice(at, 2, { ...upper, remembered, disk: lower.disk });
  }

  crash(): void {
    for (const { disk } of this.#layers) disk.open();
    this.#top.disk.close("crash");
    this.damaged = true;
  }

  /** Of the lowest image, as when it is raw and QEMU ends. */
  forget(): void {
    const [lowest] = this.#layers;
    if (lowest === undefined || this.#layers.length === 1) return;
    for (const bitmap of lowest.disk.bitmaps.keys()) lowest.disk.apply({ action: "remove", bitmap }, false);
    this.damaged = true;
  }

  state(): readonly CheckpointBitmap[] {
    const [top, ...below] = this.#layers.toReversed().map(({ disk, remembered }, index): ReportedLayer => ({
      file: `/${index}`,
      sizeBytes: disk.content.length,
      bitmaps: [...disk.bitmaps].map(([bitmap, { recording, inconsistent }]) => ({
        ...{ bitmap, recording, inconsistent, busy: false, persistent: true },
        granularityBytes: BLOCK_SIZE,
      })),
      ...(remembered === undefined ? {} : { remembered }),
    }));
    if (top === undefined) throw new Error("Expected a layer");
    return bitmapsOverLayers([top, ...below]).checkpoints;
  }

  check(): void {
    const state = this.state();
    for (const { name: checkpoint } of state.filter(({ deleted }) => deleted !== true)) {
      const since = changesSince(state, checkpoint);
      if (!since.valid) continue;
      const told = this.#layers.flatMap(({ disk }) =>
        since.bitmaps.flatMap((bitmap) => [...(disk.bitmaps.get(bitmap)?.blocks ?? [])]),
      );
      const start = this.#log.indexOf(checkpoint);
      expect(start, `${checkpoint} is of this branch`).toBeGreaterThanOrEqual(0);
      const written = this.#log.slice(start).filter((entry) => typeof entry === "number");
      expect([...new Set(told)].toSorted()).toEqual([...new Set(written)].toSorted());
    }
    if (this.damaged) return;
    const kept = this.#log.filter((entry) => typeof entry === "string" && !this.#deleted.has(entry));
    const usable = state.filter(
      ({ name: made, deleted }) => deleted !== true && changesSince(state, made).valid,
    );
    expect(usable.map(({ name: made }) => made)).toEqual(expect.arrayContaining(kept));
  }

  get #top() {
    const top = this.#layers.at(-1);
    if (top === undefined) throw new Error("Expected a layer");
    return top;
  }

  #apply(step: Parameters<FakeDisk["apply"]>[0]): void {
    this.#top.disk.apply(step, false);
  }

  #newDisk(): FakeDisk {
    return new FakeDisk("vda", "qcow2", BLOCKS * BLOCK_SIZE);
  }
}

const harmless = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant("write" as const), block: fc.nat(BLOCKS - 1) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("checkpoint" as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("overlay" as const), carries: fc.constant(true) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("delete" as const), index: fc.nat(9) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("merge" as const), index: fc.nat(9) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("revert" as const) }) },
);
const harmful = fc.oneof(
  fc.record({ do: fc.constant("crash" as const) }),
  fc.record({ do: fc.constant("forget" as const) }),
  fc.record({ do: fc.constant("overlay" as const), carries: fc.constant(false) }),
);
type Step = typeof harmless extends fc.Arbitrary<infer A> ? A : never;
type Harm = typeof harmful extends fc.Arbitrary<infer A> ? A : never;

function perform(disk: LayeredDisk, step: Step | Harm): void {
  switch (step.do) {
    case "write":
      disk.write(step.block);
      return;
    case "overlay":
      disk.overlay(step.carries);
      return;
    case "delete":
    case "merge":
      disk[step.do](step.index);
      return;
    case "checkpoint":
    case "revert":
    case "crash":
    case "forget":
      disk[step.do]();
  }
}

describe("changesSince over layers", () => {
  it.each([
    ["and loses no checkpoint", harmless],
    [
      "also after crashes, lost bitmaps and overlays of others",
      fc.oneof({ weight: 6, arbitrary: harmless }, harmful),
    ],
  ])("is exactly what was written, %s", (_, steps) => {
    fc.assert(
      fc.property(fc.array<Step | Harm>(steps, { maxLength: 50, size: "max" }), (all) => {
        const disk = new LayeredDisk();
        for (const step of all) {
          perform(disk, step);
          disk.check();
        }
      }),
      { numRuns: 60 },
    );
  });
});
