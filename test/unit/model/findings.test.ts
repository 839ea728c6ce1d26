import { describe, expect, it } from "vitest";
import type { BackupEntry, IntactEntry, ManifestDisk } from "../../../src/model/backup.js";
import { chainFindings } from "../../../src/model/chain-findings.js";
import type { CheckpointBitmap } from "../../../src/model/checkpoint.js";
import { bitmapName } from "../../../src/model/checkpoint.js";
import { diskObstacle, domainFindings, noDisks, qemuTooOld } from "../../../src/model/domain-findings.js";
import type { Finding } from "../../../src/model/finding.js";
import { FINDING_CODES, refusal, severityOf } from "../../../src/model/finding.js";
import { isAtLeast, issuesOf, KNOWN_QEMU_ISSUES } from "../../../src/model/known-qemu-issues.js";
import { decideLevel } from "../../../src/model/level.js";
import {
  domainTrouble,
  foreignAgent,
  operationFindings,
  snapshotHolds,
} from "../../../src/model/operation-findings.js";
import { repositoryFinding, scratchFinding, stateFinding } from "../../../src/model/place-findings.js";
import type { DiskState, DomainState } from "../../../src/model/snapshot-plan.js";
import { operationOfNode, snapshotNodes } from "../../../src/model/snapshot-plan.js";

const MIB = 1024 * 1024;

function bitmap(name: string, order: number, change: Partial<CheckpointBitmap> = {}): CheckpointBitmap {
  const id = { name, order, timeMs: order * 1000 };
  const state = { recording: true, inconsistent: false, busy: false, persistent: true };
  return { ...id, bitmap: bitmapName(id), ...state, granularityBytes: 65536, dirtyBytes: MIB, ...change };
}

function disk(change: Partial<DiskState> = {}): DiskState {
  const target = change.target ?? "vda";
  const file = `/vm/${target}.qcow2`;
  return {
    target,
    format: "qcow2",
    file,
    sizeBytes: 8 * MIB,
    checkpoints: [],
    foreignBitmaps: [],
    ...change,
  };
}

function domain(change: Partial<DomainState> = {}): DomainState {
  return { domain: "vm", mode: "running", qemuVersion: "9.2.0", disks: [disk()], ...change };
}

function backup(id: string, disks: readonly Partial<ManifestDisk>[], damage?: string): BackupEntry {
  const place = { repository: "default", domain: "vm", id };
  if (damage !== undefined) return { ...place, damage };
  const time = "2026-11-21T10:53:00.000Z";
  const manifest: IntactEntry["manifest"] = {
    ...{ schemaVersion: 1, id, domain: "vm", level: "full", reason: "", time, startedAt: time },
    ...{ finishedAt: time, consistency: "crash", heldMs: 0, checkpoint: id },
    disks: disks.map((each) => ({
      ...{ target: "vda", sourceFormat: "qcow2", sizeBytes: 8 * MIB, image: "", digests: "" },
      ...{ digestsSha256: "", digestBlockBytes: 65536, readBytes: 0, storedBytes: 0, zeroBytes: 0 },
      ...{ durationMs: 0, mode: "whole", reason: "" },
      ...each,
    })),
  };
  return { ...place, manifest };
}

const codes = (findings: readonly Finding[]): string[] => findings.map(({ code }) => code);
const none = new Set<string>();

describe("domainFindings", () => {
  const OBSTACLE = {
    code: "FOREIGN_FILTER",
    reason: "it has a filter",
    filter: "fleece-abcdefgh-0-filter",
  } as const;
  it.each<[string, Partial<DomainState>, string[]]>([
    ["a running domain", {}, ["DOMAIN_READY", "DISK_READY"]],
    ["a paused domain", { mode: "paused" }, ["DOMAIN_PAUSED", "DISK_READY"]],
    ["an old QEMU", { qemuVersion: "6.2.0", disks: [] }, ["DOMAIN_READY", "QEMU_TOO_OLD", "NO_DISKS"]],
    [
      "QEMU 7.2",
      { qemuVersion: "7.2.22" },
      ["DOMAIN_READY", "QEMU_BLOCK_STATUS", "QEMU_CBW_TIMEOUT", "DISK_READY"],
    ],
    ["QEMU 8.2", { qemuVersion: "8.2.2" }, ["DOMAIN_READY", "QEMU_CBW_TIMEOUT", "DISK_READY"]],
    ["exports of others", { foreignExports: ["x"] }, ["DOMAIN_READY", "NBD_SERVER_BUSY", "DISK_READY"]],
    ["an iothread", { disks: [disk({ iothread: "io0" })] }, ["DOMAIN_READY", "DISK_READY", "DISK_IOTHREAD"]],
    [
      "an unknown format",
      { disks: [disk({ obstacle: { code: "UNSUPPORTED", reason: "r" } })] },
      ["DOMAIN_READY", "DISK_UNSUPPORTED"],
    ],
    ["a filter", { disks: [disk({ obstacle: OBSTACLE })] }, ["DOMAIN_READY", "FOREIGN_FILTER"]],
    [
      "a raw disk",
      { disks: [disk({ format: "raw" })] },
      ["DOMAIN_READY", "DISK_READY", "CHECKPOINT_TRANSIENT"],
    ],
    [
      "a bitmap of others",
      { disks: [disk({ foreignBitmaps: ["b"] })] },
      ["DOMAIN_READY", "DISK_READY", "FOREIGN_BITMAP"],
    ],
    [
      "an inconsistent checkpoint",
      { disks: [disk({ checkpoints: [bitmap("c1", 1, { inconsistent: true })] })] },
      ["DOMAIN_READY", "DISK_READY", "CHECKPOINT_INCONSISTENT"],
    ],
    [
      "a checkpoint that has stopped",
      { disks: [disk({ checkpoints: [bitmap("c1", 1, { recording: false })] })] },
      ["DOMAIN_READY", "DISK_READY", "CHECKPOINT_GAP"],
    ],
    [
      "checkpoints that a gap between images has cost",
      { disks: [disk({ checkpoints: [bitmap("c1", 1, { lost: "it does not go on" })] })] },
      ["DOMAIN_READY", "DISK_READY", "CHECKPOINT_GAP"],
    ],
    [
      "a disk in another image than its domain snapshots say",
      { disks: [disk({ otherLayer: { expected: "/b", found: "/a", frozen: true } })] },
      ["DOMAIN_READY", "DISK_READY", "DISK_OTHER_LAYER"],
    ],
    [
      "sound checkpoints",
      { disks: [disk({ checkpoints: [bitmap("c1", 1, { recording: false }), bitmap("c2", 2)] })] },
      ["DOMAIN_READY", "DISK_READY"],
    ],
  ])("of %s", (_, change, expected) => {
    expect(codes(domainFindings(domain(change), none))).toEqual(expected);
  });

  it("of an inactive domain says nothing of QEMU", () => {
    const { qemuVersion: _, ...state } = domain({ mode: "inactive" });
    expect(codes(domainFindings(state, none))).toEqual(["DOMAIN_INACTIVE", "DISK_READY"]);
  });

  it("leaves a filter of ours to the finding that explains it, and only that one", () => {
    const state = domain({ disks: [disk({ obstacle: OBSTACLE })] });
    expect(codes(domainFindings(state, new Set(["abcdefgh"])))).toEqual(["DOMAIN_READY"]);
    expect(codes(domainFindings(state, new Set(["another0"])))).toContain("FOREIGN_FILTER");
    const theirs = domain({ disks: [disk({ obstacle: { ...OBSTACLE, filter: "theirs" } })] });
    expect(codes(domainFindings(theirs, new Set(["theirs"])))).toContain("FOREIGN_FILTER");
  });

  it("names the checkpoints that the next backup removes: those before an inconsistent one, too", () => {
    const checkpoints = [bitmap("c1", 1), bitmap("c2", 2, { inconsistent: true }), bitmap("c3", 3)];
    const findings = domainFindings(domain({ disks: [disk({ checkpoints })] }), none);
    const advice = findings.find(({ code }) => code === "CHECKPOINT_INCONSISTENT")?.advice;
    expect(advice).toMatch(/removes checkpoints c1, c2$/);
  });

  it("says of an iothread what the version does with it", () => {
    const note = (qemuVersion: string): string | undefined =>
      domainFindings(domain({ qemuVersion, disks: [disk({ iothread: "io0" })] }), none).find(
        ({ code }) => code === "DISK_IOTHREAD",
      )?.found;
    expect(note("7.2.22")).toMatch(/iothread io0, and QEMU 7.2.22 aborts/);
    expect(note("9.0.0")).toBe("Disk vda runs in iothread io0");
  });
});

describe("isAtLeast", () => {
  it.each([
    ["7.2.22", "7.2", true],
    ["7.1.99", "7.2", false],
    ["8.0.0", "7.2", true],
    ["10.0.0", "9.1", true],
    ["9.0.4", "9.1", false],
    ["7.2", "7.2.1", false],
  ])("%s is at least %s: %s", (version, other, expected) => {
    expect(isAtLeast(version, other)).toBe(expected);
  });

  it("gives each issue from its first version to the one before its repair", () => {
    for (const { code, since, fixed, condition } of KNOWN_QEMU_ISSUES) {
      const has = (version: string): boolean =>
        issuesOf(version, condition).some((issue) => issue.code === code);
      expect([has(`${since}.0`), has(`${fixed}.0`), has("6.0.0")]).toEqual([true, false, false]);
    }
  });
});

describe("refusal", () => {
  it.each([
    [qemuTooOld(domain({ qemuVersion: "7.1.0" })), "UNSUPPORTED", /QEMU 7.1.0; expected 7.2 or newer/],
    [noDisks(domain({ disks: [] })), "DISK_NOT_FOUND", /no writable/],
    [
      diskObstacle("vm", disk({ obstacle: { code: "UNSUPPORTED", reason: "its format is vpc" } })),
      "UNSUPPORTED",
      /^Disk vda of domain vm cannot be frozen: its format is vpc$/,
    ],
    [snapshotHolds("vm", "vda", { name: "night", leaseUntilMs: 0 }), "DOMAIN_BUSY", /night.*1970-01-01/],
  ])("is the error of %o", (blocker, code, words) => {
    if (blocker === undefined) throw new Error("Expected a blocker");
    const error = refusal(blocker, { more: 1 });
    expect(error).toMatchObject({ code, message: blocker.found, facts: { domain: "vm", more: 1 } });
    expect(error.message).toMatch(words);
    expect(error.facts["target"]).toBe(blocker.subject.disk);
  });

  it("refuses nothing that is well", () => {
    expect([qemuTooOld(domain()), noDisks(domain()), diskObstacle("vm", disk())]).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
  });
});

describe("chainFindings", () => {
  const c1 = bitmap("b1", 1);
  it.each<[string, DiskState[], BackupEntry[], string[]]>([
    ["no backup yet", [disk()], [], ["FIRST_BACKUP"]],
    ["only damaged ones", [disk()], [backup("b1", [], "no manifest")], ["FIRST_BACKUP", "BACKUP_DAMAGED"]],
    ["a sound chain", [disk({ checkpoints: [c1] })], [backup("b1", [{}])], ["NEXT_INCREMENTAL"]],
    ["a lost checkpoint", [disk()], [backup("b1", [{}])], ["NEXT_INCREMENTAL", "DISK_COMPARED"]],
    [
      "another size",
      [disk({ checkpoints: [c1], sizeBytes: 9 * MIB })],
      [backup("b1", [{}])],
      ["NEXT_FULL", "DISK_RESIZED"],
    ],
    [
      "another format",
      [disk({ checkpoints: [c1] })],
      [backup("b1", [{ sourceFormat: "raw" }])],
      ["NEXT_INCREMENTAL", "DISK_FORMAT_CHANGED"],
    ],
    [
      "a new disk",
      [disk({ checkpoints: [c1] }), disk({ target: "vdb" })],
      [backup("b1", [{}])],
      ["NEXT_INCREMENTAL", "DISK_NEW"],
    ],
    [
      "a disk that is gone",
      [disk({ checkpoints: [c1] })],
      [backup("b1", [{}, { target: "vdb" }])],
      ["NEXT_INCREMENTAL", "DISK_GONE"],
    ],
  ])("of %s", (_, disks, entries, expected) => {
    const findings = chainFindings(domain({ disks }), entries, decideLevel(disks, entries));
    expect(codes(findings)).toEqual(expected);
  });
});

describe("scratchFinding", () => {
  it.each([
    [100 * MIB, "SCRATCH_READY"],
    [16 * MIB, "SCRATCH_READY"],
    [16 * MIB - 1, "SCRATCH_TIGHT"],
    [6 * MIB - 1, "SCRATCH_SMALL"],
    [24 * 1024 - 1, "SCRATCH_FULL"],
  ])("with %i bytes free for two disks of 8 MiB that hold 3 MiB each is %s", (freeBytes, code) => {
    const disks = [disk({ allocatedBytes: 3 * MIB }), disk({ target: "vdb", allocatedBytes: 3 * MIB })];
    expect(scratchFinding("vm", disks, { usable: true, freeBytes })).toMatchObject({ code });
  });

  it("takes a disk whose allocation is unknown, or larger than it, for full", () => {
    for (const change of [{}, { allocatedBytes: 99 * MIB }]) {
      const place = { usable: true, freeBytes: 8 * MIB - 1 } as const;
      expect(scratchFinding("vm", [disk(change)], place)).toMatchObject({ code: "SCRATCH_SMALL" });
    }
  });

  it("has the error of a directory that cannot be used", () => {
    const trouble = { code: "PATH_NOT_FOUND", message: "gone" } as const;
    expect(scratchFinding("vm", [disk()], { usable: false, trouble })).toMatchObject({
      ...{ code: "SCRATCH_UNUSABLE", errorCode: "PATH_NOT_FOUND", found: "gone" },
    });
  });
});

describe("repositoryFinding", () => {
  const checkpoints = [bitmap("b1", 1, { dirtyBytes: 2 * MIB, recording: false }), bitmap("b2", 2)];
  const incremental = decideLevel([disk({ checkpoints })], [backup("b1", [{}])]);
  const full = decideLevel([], [], "full");
  it.each([
    ["incremental", 3 * MIB, {}, "REPOSITORY_READY"],
    ["incremental", 3 * MIB - 1, {}, "REPOSITORY_SMALL"],
    ["full", 8 * MIB - 1, {}, "REPOSITORY_SMALL"],
    ["full", 5 * MIB, { allocatedBytes: 5 * MIB }, "REPOSITORY_READY"],
    ["full", MIB / 8, {}, "REPOSITORY_FULL"],
    ["unknown", MIB, {}, "REPOSITORY_READY"],
  ] as const)(
    "for a next backup that is %s, with %i bytes free, is %3$s",
    (level, freeBytes, change, code) => {
      const decision = level === "full" ? full : level === "incremental" ? incremental : undefined;
      expect(incremental.level).toBe("incremental");
      const facts = { name: "default", place: { usable: true, freeBytes } } as const;
      expect(repositoryFinding("vm", [disk({ checkpoints, ...change })], facts, decision)).toMatchObject({
        code,
      });
    },
  );

  it("says nothing of what is needed where the image header does not tell what changed", () => {
    const { dirtyBytes: _, ...unknown } = bitmap("b1", 1);
    const disks = [disk({ checkpoints: [unknown] })];
    const facts = { name: "default", place: { usable: true, freeBytes: MIB } } as const;
    const finding = repositoryFinding("vm", disks, facts, decideLevel(disks, [backup("b1", [{}])]));
    expect(finding.found).toBe("Repository default has 1 MiB free");
  });
});

describe("operationFindings", () => {
  const at = { id: "abcdefgh", startedAtMs: 0 };
  it.each([
    [{ ...at, kind: "backup", backupId: "b", published: true }, "UNFINISHED_OPERATION", /checkpoint stays/],
    [{ ...at, kind: "backup", backupId: "b", published: false }, "UNFINISHED_OPERATION", /no change is lost/],
    [{ ...at, kind: "restore", backupId: "b" }, "UNFINISHED_OPERATION", /unfinished files/],
    [{ ...at, kind: "unfinished-snapshot", name: "s" }, "UNFINISHED_OPERATION", /removes what is left/],
    [{ ...at, kind: "expired-snapshot", name: "s", leaseUntilMs: 0 }, "SNAPSHOT_EXPIRED", /as failed/],
    [{ ...at, kind: "broken-snapshot", name: "s", why: "full" }, "SNAPSHOT_BROKEN", /does not count/],
    [
      { ...at, kind: "open-snapshot", name: "s", leaseUntilMs: 0, targets: ["vda"] },
      "SNAPSHOT_OPEN",
      /block-snapshot delete vm s/,
    ],
  ] as const)("of %o", (operation, code, advice) => {
    const [finding, ...more] = operationFindings("vm", [operation]);
    expect(more).toEqual([]);
    expect(finding?.code).toBe(code);
    expect(finding?.advice).toMatch(advice);
  });
});

describe("foreignAgent", () => {
  it("finds nodes with our mark that belong to no operation of ours", () => {
    const nodes = snapshotNodes("abcdefgh", 12);
    const names = [nodes.scratch, nodes.filter, nodes.access];
    const state = domain({ ourNodes: [...names, "fleece-odd"] });
    for (const node of names) expect(operationOfNode(node)).toBe("abcdefgh");
    const [finding] = foreignAgent(state, new Set(["abcdefgh"]));
    expect(finding?.found).toMatch(/: fleece-odd$/);
    expect(foreignAgent(domain({ ourNodes: [nodes.filter] }), new Set(["abcdefgh"]))).toEqual([]);
    expect(foreignAgent(domain(), none)).toEqual([]);
  });
});

describe("domainTrouble", () => {
  it.each([
    ["DOMAIN_BUSY", false, "DOMAIN_BUSY"],
    ["DOMAIN_UNREACHABLE", false, "DOMAIN_UNREACHABLE"],
    ["DOMAIN_UNREACHABLE", true, "MONITOR_IN_USE"],
    ["DISK_IN_USE", false, "DOMAIN_UNREADABLE"],
  ] as const)("%s (monitor in use: %s) is %s, with the error's code and words", (code, inUse, expected) => {
    expect(domainTrouble("vm", { code, message: "words" }, inUse)).toMatchObject({
      ...{ code: expected, errorCode: code, found: "words" },
    });
  });
});

describe("stateFinding", () => {
  it("is a blocker with the error's code, or fine", () => {
    const trouble = { code: "PERMISSION_DENIED", message: "no" } as const;
    expect(stateFinding("vm", trouble)).toMatchObject({
      code: "STATE_UNUSABLE",
      errorCode: "PERMISSION_DENIED",
    });
    expect(stateFinding("vm", undefined).code).toBe("STATE_READY");
  });
});

describe("severityOf", () => {
  it("follows from the code alone", () => {
    for (const [code, [severity]] of Object.entries(FINDING_CODES)) {
      expect(severityOf({ code } as Finding)).toBe(severity);
    }
  });
});
