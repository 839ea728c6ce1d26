import type { IntactEntry } from "../../../src/model/backup.js";
import type { DomainState } from "../../../src/model/snapshot-plan.js";
import type { BlockSnapshot } from "../../../src/services/open-snapshots.js";
import type { Checkpoint } from "../../../src/services/checkpoints.js";
import type { PreflightReport } from "../../../src/services/preflight.js";

/** Values of the services with every optional field set. */
export const fullEntry: IntactEntry = {
  copiedFrom: "other",
  repository: "default",
  domain: "web01",
  id: "20261121T105300Z-k3j9ab",
  manifest: {
    schemaVersion: 2,
    id: "20261121T105300Z-k3j9ab",
    domain: "web01",
    level: "incremental",
    parent: "20261120T105300Z-000000",
    reason: "based on backup 20261120T105300Z-000000",
    time: "2026-11-21T10:53:00.250Z",
    startedAt: "2026-11-21T10:52:59.000Z",
    finishedAt: "2026-11-21T10:53:10.500Z",
    consistency: "crash",
    heldMs: 12,
    scratchPeakBytes: 2 ** 21,
    waits: { readLimit: 1500, writeLimit: 20, guestLatency: 300 },
    frozenMs: 30,
    quiesceFailure: "the agent is out",
    checkpoint: "20261121T105300Z-k3j9ab",
    disks: [
      {
        target: "vda",
        sourceFormat: "raw",
        sourceFile: "/vm/a.raw",
        sizeBytes: 2 ** 40,
        mode: "compare",
        reason: "checkpoint 20261120T105300Z-000000 does not exist on the disk",
        image: "vda.qcow2",
        digests: "vda.digests",
        digestsSha256: "00",
        keyId: "0123456789abcdef0123456789abcdef",
        digestBlockBytes: 65536,
        readBytes: 3 * 2 ** 30,
        storedBytes: 2 ** 30,
        zeroBytes: 65536,
        durationMs: 9000,
      },
    ],
  },
};

const bitmap = {
  name: "c2",
  order: 2,
  timeMs: 1_795_258_380_250,
  bitmap: "fleece:1:2:1795258380250:c2",
  recording: true,
  inconsistent: false,
  busy: true,
  persistent: true,
  granularityBytes: 65536,
  dirtyBytes: 131_072,
};

export const fullCheckpoint: Checkpoint = {
  name: "c2",
  order: 2,
  timeMs: 1_795_258_380_250,
  parent: "c1",
  valid: true,
  disks: [{ ...bitmap, target: "vda" }],
};

export const fullState: DomainState = {
  domain: "web01",
  mode: "running",
  qemuVersion: "7.2.22",
  disks: [
    {
      target: "vda",
      format: "qcow2",
      file: "/vm/a.qcow2",
      sizeBytes: 2 ** 30,
      checkpoints: [bitmap],
      foreignBitmaps: ["theirs"],
      staged: true,
      activeFile: "/images/vda-s1.qcow2",
      frozenFiles: ["/images/vda.qcow2"],
      obstacle: { code: "FOREIGN_FILTER", reason: "another tool's filter is on it" },
    },
  ],
};

export const fullSnapshot: BlockSnapshot = {
  kind: "block-snapshot",
  domain: "web01",
  name: "night",
  phase: "open",
  leaseMs: 1_800_000,
  leaseUntilMs: 1_795_260_180_250,
  mode: "running",
  timeMs: 1_795_258_380_250,
  heldMs: 12,
  quiesce: { frozen: true, frozenMs: 30 },
  fingerprints: [],
  broken: "The frozen content of disk vda is gone",
  plan: {
    id: "k3j9ab00",
    domain: "web01",
    checkpoint: { name: "c2", order: 2, timeMs: 1_795_258_380_250 },
    scratchLimitBytes: 10 * 2 ** 30,
    disks: [
      {
        target: "vda",
        format: "qcow2",
        sizeBytes: 2 ** 30,
        scratchPath: "/scratch/k3j9ab00-vda.qcow2",
        nodes: { scratch: "s", filter: "f", access: "a", push: "p" },
        previousBitmaps: [],
      },
    ],
  },
  exports: [
    {
      target: "vda",
      exportName: "vda-a:b@c+d=e",
      socketPath: "/run/a b&c/it's (here)?#/nbd.sock",
      sizeBytes: 2 ** 30,
      since: "c1",
      changesContext: "qemu:dirty-bitmap:since-c1",
      staged: true,
      front: { address: { host: "2001:db8::1", port: 10809 }, clients: ["Vendor"] },
    },
  ],
};

export const fullReport: PreflightReport = {
  domain: "web01",
  repository: "default",
  ready: false,
  state: fullState,
  decision: { level: "full", reason: "a full was asked for", disks: new Map() },
  findings: [
    {
      code: "SNAPSHOT_OPEN",
      errorCode: "DOMAIN_BUSY",
      subject: { domain: "web01", disk: "vda" },
      found: "It is held",
      advice: "Wait",
    },
  ],
};
