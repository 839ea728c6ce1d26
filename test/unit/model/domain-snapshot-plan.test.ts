import { describe, expect, it } from "vitest";
import {
  type CreateDomainSnapshotRequest,
  type DomainSnapshot,
  type DomainSnapshots,
  noSnapshots,
} from "../../../src/model/domain-snapshot.js";
import {
  checkMemoryRoom,
  checkSpace,
  type DiskFacts,
  type DomainFacts,
  planCreation,
  type PlanParts,
  addSnapshot,
} from "../../../src/model/domain-snapshot-plan.js";
import type { LogicalVolume } from "../../../src/model/volumes.js";
import { MIB } from "../../../src/shared/units.js";

const machine = {
  type: "pc-q35-7.2",
  cpu: "qemu64",
  memoryBytes: 128 * MIB,
  cpus: 1,
  qemuVersion: "7.2.22",
  arguments: [],
  devices: [],
};

function disk(target: string, changes: Partial<DiskFacts> = {}): DiskFacts {
  return {
    target,
    file: `/images/${target}.qcow2`,
    formats: ["qcow2"],
    sizeBytes: 64 * MIB,
    readOnly: false,
    removable: false,
    bitmaps: [],
    internalSnapshots: [],
    ...changes,
  };
}

const running: DomainFacts = {
  state: "running",
  runState: "running",
  memoryBlockers: [],
  jobs: [],
  foreignExports: [],
  disks: [disk("vda"), disk("vdb"), disk("sr0", { removable: true, readOnly: true })],
  machine,
};
const inactive: DomainFacts = { ...running, state: "inactive", runState: "inactive", disks: [disk("vda")] };

const older: DomainSnapshot = {
  name: "older",
  description: "",
  timeMs: 1,
  state: "running",
  kind: "external",
  live: false,
  pausedMs: 0,
  disks: [],
  clones: [],
};

interface Case {
  readonly facts?: Partial<DomainFacts>;
  readonly all?: Partial<DomainSnapshots>;
  readonly parts?: Partial<PlanParts>;
  readonly base?: DomainFacts;
}

function plan(
  request: Partial<CreateDomainSnapshotRequest>,
  { facts, all, parts, base = running }: Case = {},
) {
  return planCreation(
    { domain: "vm", ...request },
    {
      id: "k3j9ab00",
      nowMs: 1_700_000_000_500,
      facts: { ...base, ...facts },
      all: { ...noSnapshots("vm"), ...all },
      directory: "/state/vm",
      memoryPathIsDirectory: false,
      holders: [],
      ...parts,
    },
  );
}

describe("planCreation", () => {
  it("takes memory and all writable disks, named by the time, where the request says nothing", () => {
    const planned = plan({});
    expect(planned).toMatchObject({
      name: "1700000000",
      state: "running",
      live: false,
      memory: { path: "/state/vm/1700000000.save", firstName: "/state/vm/.fleece-k3j9ab00-1700000000.save" },
      machine,
      leftOut: ["sr0"],
    });
    expect(planned.disks.map(({ target, file, overlay }) => [target, file, overlay.path])).toEqual([
      ["vda", "/images/vda.qcow2", "/state/vm/vda-1700000000.qcow2"],
      ["vdb", "/images/vdb.qcow2", "/state/vm/vdb-1700000000.qcow2"],
    ]);
  });

  it("takes the next second if the default name is taken", () => {
    const snapshots = [{ ...older, name: "1700000000" }];
    expect(plan({}, { all: { snapshots } }).name).toBe("1700000001");
  });

  it("leaves raw disks to LVM that are logical volumes, and makes overlays of the others", () => {
    const facts = {
      disks: ["vda", "vdb", "vdc"].map((target) =>
        disk(target, { file: `/dev/vg/${target}`, formats: ["raw"] }),
      ),
    };
    const volume = {
      group: "vg",
      name: "vda",
      kind: "classic",
      freeBytes: 64 * MIB,
      siblings: ["vda"],
    } as const;
    const volumes = new Map<string, LogicalVolume>([
      ["/dev/vg/vda", volume],
      ["/dev/vg/vdb", { ...volume, name: "vdb", kind: "thin" }],
    ]);
    const planned = plan({ name: "s@1", lvm: true }, { facts, parts: { volumes } });
    const tag = "fleece:k3j9ab00";
    expect(planned.disks.map(({ target }) => target)).toEqual(["vdc"]);
    expect(planned.leftOut).toEqual([]);
    expect(planned.volumes?.map(({ file, snapshot }) => [file, snapshot])).toEqual([
      ["/dev/vg/vda-s_1", { kind: "classic", group: "vg", name: "vda-s_1", tag }],
      ["/dev/vg/vdb-s_1", { kind: "thin", group: "vg", name: "vdb-s_1", tag }],
    ]);
    const refusal = (code: string): unknown => expect.objectContaining({ code });
    expect(() => plan({ lvm: true }, { facts })).toThrow(refusal("UNSUPPORTED"));
    expect(() => plan({ lvmReservedBytes: MIB }, { facts })).toThrow(refusal("INVALID_ARGUMENT"));
    expect(() => plan({ lvm: true, lvmReservedBytes: 65 * MIB }, { facts, parts: { volumes } })).toThrow(
      refusal("NO_SPACE"),
    );
    volumes.set("/dev/vg/vda", { ...volume, siblings: ["vda-s"] });
    expect(() => plan({ name: "s", lvm: true }, { facts, parts: { volumes } })).toThrow(
      refusal("ALREADY_EXISTS"),
    );
  });

  it("puts all files into the directory of the request, and the memory where it is wanted", () => {
    const planned = plan(
      { name: "s", directory: "/new", memoryPath: "/mem" },
      { parts: { memoryPathIsDirectory: true } },
    );
    expect(planned).toMatchObject({ directory: "/new", memory: { path: "/mem/s.save" } });
    expect(planned.disks[0]?.overlay.path).toBe("/new/vda-s.qcow2");
    expect(plan({ memoryPath: "/mem/s" }).memory?.path).toBe("/mem/s");
  });

  it("takes no memory of an inactive domain or disk-only", () => {
    expect(plan({}, { base: inactive })).not.toHaveProperty("memory");
    expect(plan({ diskOnly: true })).not.toHaveProperty("memory");
  });

  it("carries the bitmap that records, and forgets inconsistent ones", () => {
    const common = { granularityBytes: 65536, inconsistent: false };
    const bitmaps = [
      { ...common, bitmap: "bad", recording: false, inconsistent: true },
      { ...common, bitmap: "old", recording: false },
      { ...common, bitmap: "new", recording: true },
    ];
    const [layer] = plan({}, { facts: { disks: [disk("vda", { bitmaps })] } }).disks;
    expect(layer?.bitmaps).toEqual(["old", "new"]);
    expect(layer?.carried.map(({ bitmap }) => bitmap)).toEqual(["new"]);
  });

  it("keeps a disk's home over several snapshots", () => {
    const layers = [{ target: "vda", home: "/home", active: "/images/vda.qcow2", format: "qcow2" }] as const;
    const all = { ...noSnapshots("vm"), layers, current: "older", snapshots: [older] };
    const planned = plan({ name: "s" }, { all });
    const next = addSnapshot(all, planned, { ...older, name: "s" });
    expect(planned.parent).toBe("older");
    const named = plan({ diskOnly: true, disks: [{ disk: "/home" }] }, { all });
    expect(named.disks.map(({ target }) => target)).toEqual(["vda"]);
    expect(next.current).toBe("s");
    expect(next.layers).toEqual([
      { target: "vda", home: "/home", active: "/state/vm/vda-s.qcow2", format: "qcow2" },
      { target: "vdb", home: "/images/vdb.qcow2", active: "/state/vm/vdb-s.qcow2", format: "qcow2" },
    ]);
  });

  const taken = { all: { snapshots: [older] } };
  const vpc = [disk("vda", { formats: ["qcow2", "vpc"] })];
  it.each<[string, string, Partial<CreateDomainSnapshotRequest>, Case, RegExp]>([
    ["a name that is taken", "ALREADY_EXISTS", { name: "older" }, taken, /older/],
    ["a bad name", "INVALID_NAME", { name: "../x" }, {}, /name/],
    ["an unknown disk", "DISK_NOT_FOUND", { disks: [{ disk: "vdz" }] }, {}, /vda, vdb/],
    [
      "a disk twice",
      "INVALID_ARGUMENT",
      { disks: [{ disk: "vda" }, { disk: "/images/vda.qcow2" }] },
      {},
      /twice/,
    ],
    ["a read-only disk", "INVALID_ARGUMENT", { disks: [{ disk: "sr0" }] }, {}, /removable/],
    ["a domain without disks", "UNSUPPORTED", {}, { facts: { disks: [] } }, /no writable disk/],
    [
      "both kinds",
      "UNSUPPORTED",
      { disks: [{ disk: "vda", kind: "internal" }, { disk: "vdb" }] },
      {},
      /both/,
    ],
    ["an internal one", "UNSUPPORTED", { kind: "internal" }, {}, /internal/],
    [
      "external after internal ones",
      "UNSUPPORTED",
      {},
      { all: { snapshots: [{ ...older, kind: "internal" }] } },
      /older/,
    ],
    [
      "an internal snapshot of somebody else's",
      "UNSUPPORTED",
      {},
      { facts: { disks: [disk("vda", { internalSnapshots: ["theirs"] })] } },
      /theirs/,
    ],
    [
      "memory without one of the disks",
      "INVALID_ARGUMENT",
      { disks: [{ disk: "vda" }] },
      {},
      /vdb is left out/,
    ],
    ["quiesce with memory", "INVALID_ARGUMENT", { quiesce: true }, {}, /frozen/],
    ["quiesce of an inactive domain", "INVALID_ARGUMENT", { quiesce: true }, { base: inactive }, /inactive/],
    ["live without memory", "INVALID_ARGUMENT", { live: true, diskOnly: true }, {}, /disk-only/],
    ["live of an inactive domain", "INVALID_ARGUMENT", { live: true }, { base: inactive }, /inactive/],
    ["a place for no memory", "INVALID_ARGUMENT", { diskOnly: true, memoryPath: "/m" }, {}, /disk-only/],
    ["a relative place", "INVALID_ARGUMENT", { memoryPath: "m" }, {}, /absolute/],
    ["one file for two", "INVALID_ARGUMENT", { name: "s", memoryPath: "/state/vm/vda-s.qcow2" }, {}, /twice/],
    [
      "live memory over vpc",
      "UNSUPPORTED",
      { live: true },
      { facts: { disks: vpc } },
      /vda.*vpc.*without live/,
    ],
    [
      "memory that QEMU refuses to save",
      "UNSUPPORTED",
      {},
      { facts: { memoryBlockers: ["words"] } },
      /words/,
    ],
    [
      "a disk of an unknown format",
      "UNSUPPORTED",
      { diskOnly: true },
      { facts: { disks: [disk("vda", { formats: ["luks"] })] } },
      /luks/,
    ],
    ["a domain that is migrated", "DOMAIN_BUSY", {}, { facts: { migration: "active" } }, /migrated/],
    ["a domain that arrives", "DOMAIN_BUSY", {}, { facts: { runState: "inmigrate" } }, /inmigrate/],
    ["a crashed domain", "UNSUPPORTED", {}, { facts: { runState: "guest-panicked" } }, /guest-panicked/],
    ["a domain that shuts down", "UNSUPPORTED", {}, { facts: { runState: "shutdown" } }, /shutdown/],
    ["a block job", "DOMAIN_BUSY", {}, { facts: { jobs: ["a commit job (j)"] } }, /commit job \(j\)/],
    ["another program's export", "DOMAIN_BUSY", {}, { facts: { foreignExports: ["e"] } }, /NBD export e/],
    ["an open block snapshot", "DOMAIN_BUSY", {}, { parts: { holders: ["Disk vda is held by s1"] } }, /s1/],
    [
      "another tool's filter",
      "FOREIGN_FILTER",
      {},
      { facts: { disks: [disk("vda", { filter: "f" })] } },
      /filter f/,
    ],
    [
      "a disk that is in another file than after its snapshots",
      "DAMAGED",
      {},
      { all: { layers: [{ target: "vda", home: "/images/vda.qcow2", active: "/o", format: "qcow2" }] } },
      /\/o/,
    ],
  ])("refuses %s: %s", (_, code, request, facts, words) => {
    expect(() => plan(request, facts)).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(words) as string }) as Error,
    );
  });
});

describe("checkSpace", () => {
  it("asks for the guest's RAM and the overlays on each file system", () => {
    const planned = plan({ name: "s", memoryPath: "/mem/s" });
    const places = new Map([
      ["/state/vm", { device: "1", freeBytes: 8 * MIB }],
      ["/mem", { device: "2", freeBytes: 160 * MIB }],
    ]);
    expect(() => checkSpace(planned, (directory) => places.get(directory))).not.toThrow();
    const oneDevice = { device: "1", freeBytes: 160 * MIB };
    expect(() => checkSpace(planned, () => oneDevice)).toThrow(/168 MiB free .* got 160 MiB/);
    expect(() => checkSpace(plan({ diskOnly: true }), () => ({ device: "1", freeBytes: MIB }))).toThrow(
      expect.objectContaining({ code: "NO_SPACE" }) as Error,
    );
  });
});

describe("checkMemoryRoom", () => {
  it("asks for the guest's RAM and some more where the first disk's image is, if that is a file", () => {
    const machine = { memoryBytes: 64 * MIB };
    expect(() => checkMemoryRoom(machine, { file: "/images/a", freeBytes: 96 * MIB })).not.toThrow();
    expect(() => checkMemoryRoom(machine, { file: "/dev/vg/a" })).not.toThrow();
    expect(() => checkMemoryRoom(machine, { file: "/images/a", freeBytes: 95 * MIB })).toThrow(
      expect.objectContaining({
        code: "NO_SPACE",
        message: "Expected 96 MiB free for the memory in /images/a, got 95 MiB",
      }) as Error,
    );
  });
});
