import { describe, expect, it } from "vitest";
import type { CreateDomainSnapshotRequest, DomainSnapshot } from "../../../src/model/domain-snapshot.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { qemuImg } from "../../support/image-tool.js";
import type { DiskFormat } from "../../support/vm-arguments.js";
import { countOn, type CounterSite, DOMAIN, startCounterSite } from "./support/counter-site.js";

/** Of each kind; `npm run test:round-trips` does many of all kinds, the default test run one. */
const ROUND_TRIPS = Number(process.env["FLEECE_ROUND_TRIPS"] ?? 1);
const ROUND_TRIP_MS = 60_000;

const KINDS: readonly {
  readonly what: string;
  readonly request: Pick<CreateDomainSnapshotRequest, "kind" | "live">;
  /** The format of the second disk; default: raw. */
  readonly vdb?: DiskFormat;
}[] = [
  // The default test run takes others back in the tests of reverts and of internal snapshots.
  { what: "external snapshots of a live guest", request: { live: true } },
  { what: "external snapshots of a held guest", request: {} },
  { what: "external snapshots over a vmdk disk", request: {}, vdb: "vmdk" },
  { what: "internal snapshots", request: { kind: "internal" }, vdb: "qcow2" },
];

describe("Round trips to domain snapshots", () => {
  it.each(ROUND_TRIPS > 1 ? KINDS : KINDS.slice(0, 1))(
    "with $what take RAM and all disks back to one moment, every time",
    async ({ what, request, vdb = "raw" }) => {
      const site = await startCounterSite({ vdb, tickSeconds: 0.1 });
      const files = await site.files();
      for (let trip = 1; trip <= ROUND_TRIPS; trip++) {
        await roundTrip(site, { ...request, domain: DOMAIN, name: `trip${trip}` });
        // Nothing is left of it, in the document, among the files and in the images.
        expect(await site.document()).toMatchObject({ snapshots: [] });
        expect((await site.files()).filter(isContent)).toEqual(files.filter(isContent));
        expect(await internalLists(site)).toEqual([]);
        if (ROUND_TRIPS > 1) process.stdout.write(`${what}: ${trip} of ${ROUND_TRIPS}\n`);
      }
      expect(site.warnings).toEqual([]);
    },
    ROUND_TRIPS * ROUND_TRIP_MS + 120_000,
  );

  it("would show RAM of one snapshot on the disks of another", async () => {
    const site = await startCounterSite({ tickSeconds: 1 });
    const { context, guest } = site;
    const { counter, vm } = guest;
    // Between two turns: in the middle of one the guest would write to its disks before it compares them again.
    await counter.waitTurns(1);
    await vm.qmp("stop");
    await createDomainSnapshot(context, { domain: DOMAIN, name: "early" });
    await vm.qmp("cont");
    await counter.waitTurns(2);
    const late = await createDomainSnapshot(context, { domain: DOMAIN, name: "late" });
    const all = await site.document();
    const mixed = (each: DomainSnapshot): DomainSnapshot =>
      each.name === "early" ? { ...each, disks: late.disks } : each;
    await context.domainSnapshots.write({ ...all, snapshots: all.snapshots.map(mixed) });
    await revertDomainSnapshot(context, { domain: DOMAIN, name: "early", to: "running" });
    await counter.waitTurns(1);
    const mismatches = counter.mismatches().map((line) => /^MISMATCH (\w+)/.exec(line)?.[1]);
    expect(mismatches).toEqual(["vda", "vdb"]);
  });
});

async function roundTrip(
  site: CounterSite,
  request: CreateDomainSnapshotRequest & { readonly name: string },
): Promise<void> {
  const { context, guest } = site;
  const { counter } = guest;
  const { name } = request;
  const atLeast = counter.count();
  const snapshot = await createDomainSnapshot(context, request);
  expect(snapshot).toMatchObject({ state: "running", kind: request.kind ?? "external" });
  expect(snapshot.memory?.sizeBytes).toBeGreaterThan(0);
  const atMost = counter.count() + 1;
  const before = counter.console.lines.length;
  await counter.waitCount(atMost + 5);

  const { keptAs = "" } = await revertDomainSnapshot(context, { domain: DOMAIN, name });
  await counter.waitTurns(3);
  const { last, counts, mismatches } = sinceRevert(counter.console.lines.slice(before));
  const first = counts[0] ?? NaN;
  expect(last, `the count before the revert to ${name}`).toBeGreaterThan(atMost);
  expect(first, `the first count after the revert to ${name}`).toBeGreaterThanOrEqual(atLeast);
  expect(first, `the first count after the revert to ${name}`).toBeLessThanOrEqual(atMost);
  expect(counts).toEqual(counts.map((_, index) => first + index));
  expect(mismatches).toEqual([]);
  expect(await counter.check()).toMatch(/^ok /);
  if (snapshot.kind === "external") {
    // As others see the disks of the snapshot, which nobody may have written to since: of the turn that RAM was in.
    for (const { file, format } of snapshot.disks) {
      expect(first - (await countOn(file, format)), `disk ${file} of ${name}`).toBeOneOf([0, 1, 2]);
    }
  }

  for (const each of [keptAs, name]) await deleteDomainSnapshot(context, { domain: DOMAIN, name: each });
  expect(await site.status()).toBe("running");
  await counter.waitTurns(2);
  expect(counter.mismatches()).toEqual([]);
}

/** What the guest said from shortly before the revert on; its count goes down once, and that is the revert. */
function sinceRevert(lines: readonly string[]): {
  /** The last count before the revert. */
  readonly last: number;
  /** All counts after it. */
  readonly counts: readonly number[];
  readonly mismatches: readonly string[];
} {
  const counts = lines.flatMap((line) => Number(/^T (\d+)$/.exec(line)?.[1] ?? NaN)).filter(Number.isFinite);
  const at = counts.findIndex((count, index) => count <= (counts[index - 1] ?? -1));
  return {
    last: counts[at - 1] ?? NaN,
    counts: at < 0 ? [] : counts.slice(at),
    mismatches: lines.filter((line) => line.startsWith("MISMATCH ")),
  };
}

const isContent = (name: string): boolean => /\.(qcow2|raw|save)$/.test(name);

async function internalLists({ guest }: CounterSite): Promise<string[]> {
  const images = guest.vm.disks.filter(({ format }) => format === "qcow2");
  const lists = await Promise.all(images.map(({ path }) => qemuImg("snapshot", "-l", "-U", path)));
  return lists.filter((text) => text !== "");
}
