import type { CheckpointBitmap } from "./checkpoint.js";
import { deadBitmaps } from "./checkpoint.js";
import type { Blocker, Finding } from "./finding.js";
import { isAtLeast, issuesOf, OLDEST_QEMU } from "./known-qemu-issues.js";
import type { DiskState, DomainState, MissingDisk, Obstacle } from "./snapshot-plan.js";
import { operationOfNode } from "./snapshot-plan.js";

/** What the state of a domain says about its next backup. Pure rules: from what was found to findings. */

export function qemuTooOld({ domain, qemuVersion }: DomainState): Blocker | undefined {
  if (qemuVersion === undefined || isAtLeast(qemuVersion, OLDEST_QEMU)) return undefined;
  return {
    code: "QEMU_TOO_OLD",
    errorCode: "UNSUPPORTED",
    subject: { domain },
    found: `Domain ${domain} runs QEMU ${qemuVersion}; expected ${OLDEST_QEMU} or newer`,
    advice: "Back it up while it is off, or restart it with a newer QEMU",
  };
}

export function missingDisk(domain: string, { target, reason }: MissingDisk): Blocker {
  return {
    code: "DISK_MISSING",
    errorCode: "DISK_NOT_FOUND",
    subject: { domain, disk: target },
    found: `Domain ${domain} has no disk ${target}: ${reason}`,
    advice: "Plug it in again, take it out of the configuration, or name the other disks with --disk",
  };
}

export function noDisks({ domain, disks, missingDisks = [] }: DomainState): Blocker | undefined {
  if (disks.length + missingDisks.length > 0) return undefined;
  return {
    code: "NO_DISKS",
    errorCode: "DISK_NOT_FOUND",
    subject: { domain },
    found: `Domain ${domain} has no writable, non-removable disk`,
    advice: "Read-only disks and removable media are left out; give a disk without an id a device id",
  };
}

const OBSTACLES = {
  FOREIGN_FILTER: {
    code: "FOREIGN_FILTER",
    advice: "Wait until what works on the disk has ended, or end it with the program that started it",
  },
  UNSUPPORTED: {
    code: "DISK_UNSUPPORTED",
    advice: "Convert the disk to qcow2 or raw, or name the other disks with --disk",
  },
} as const satisfies Record<Obstacle["code"], Pick<Blocker, "code" | "advice">>;

export function diskObstacle(domain: string, { target, obstacle }: DiskState): Blocker | undefined {
  if (obstacle === undefined) return undefined;
  return {
    ...OBSTACLES[obstacle.code],
    errorCode: obstacle.code,
    subject: { domain, disk: target },
    found: `Disk ${target} of domain ${domain} cannot be frozen: ${obstacle.reason}`,
  };
}

/** `explained`: ids of operations of ours whose filters are no obstacle of their own, since they are reported as what they are. */
export function domainFindings(state: DomainState, explained: ReadonlySet<string>): readonly Finding[] {
  return [
    modeFinding(state),
    ...present(qemuTooOld(state), noDisks(state)),
    ...versionNotes(state),
    ...foreignExports(state),
    ...state.disks.flatMap((disk) => diskFindings(state, disk, explained)),
    ...(state.missingDisks ?? []).map((disk) => missingDisk(state.domain, disk)),
  ];
}

function modeFinding({ domain, mode, qemuVersion }: DomainState): Finding {
  const subject = { domain };
  switch (mode) {
    case "running":
      return {
        code: "DOMAIN_READY",
        subject,
        found: `Domain ${domain} runs, in QEMU ${qemuVersion ?? "of unknown version"}`,
        advice: "A restore is as after a power cut",
      };
    case "paused":
      return {
        code: "DOMAIN_PAUSED",
        subject,
        found: `The guest of domain ${domain} is stopped, in QEMU ${qemuVersion ?? "of unknown version"}`,
        advice: "It can be backed up, and stays stopped",
      };
    case "inactive":
      return {
        code: "DOMAIN_INACTIVE",
        subject,
        found: `Domain ${domain} does not run`,
        advice:
          "Its image files are read; if it is started meanwhile, the backup fails and the guest goes on",
      };
  }
}

function versionNotes({ domain, qemuVersion }: DomainState): readonly Finding[] {
  if (qemuVersion === undefined) return [];
  return issuesOf(qemuVersion, "a running domain").map(({ code, consequence, fixed, handling }) => ({
    code,
    subject: { domain },
    found: `QEMU ${qemuVersion} ${consequence} (fixed in ${fixed})`,
    advice: handling,
  }));
}

function foreignExports({ domain, foreignExports: names = [] }: DomainState): readonly Finding[] {
  if (names.length === 0) return [];
  return [
    {
      code: "NBD_SERVER_BUSY",
      subject: { domain },
      found: `Another program exports ${names.join(", ")} over NBD from the QEMU of domain ${domain}`,
      advice:
        "One QEMU has one NBD server: a backup that needs it is refused until the other program has ended it",
    },
  ];
}

function diskFindings(
  { domain, qemuVersion }: DomainState,
  disk: DiskState,
  explained: ReadonlySet<string>,
): readonly Finding[] {
  const { obstacle } = disk;
  const owner = obstacle?.filter === undefined ? undefined : operationOfNode(obstacle.filter);
  const blocker = owner !== undefined && explained.has(owner) ? undefined : diskObstacle(domain, disk);
  return [
    ...(obstacle === undefined ? [ready(domain, disk)] : present(blocker)),
    ...present(iothreadNote(domain, disk, qemuVersion), otherLayer(domain, disk)),
    ...bitmapFindings(domain, disk),
  ];
}

function ready(domain: string, { target, format, checkpoints: all }: DiskState): Finding {
  const checkpoints = all.filter(({ deleted }) => deleted !== true);
  const count = `${checkpoints.length} checkpoint${checkpoints.length === 1 ? "" : "s"}`;
  return {
    code: "DISK_READY",
    subject: { domain, disk: target },
    found: `Disk ${target} can be frozen; it is ${format} and has ${count}`,
    advice: "Nothing to do",
  };
}

function iothreadNote(
  domain: string,
  { target, iothread }: DiskState,
  qemuVersion: string | undefined,
): Finding | undefined {
  if (iothread === undefined) return undefined;
  const [issue] = qemuVersion === undefined ? [] : issuesOf(qemuVersion, "a disk in an iothread");
  const consequence = issue === undefined ? "" : `, and QEMU ${qemuVersion ?? ""} ${issue.consequence}`;
  return {
    code: "DISK_IOTHREAD",
    subject: { domain, disk: target },
    found: `Disk ${target} runs in iothread ${iothread}${consequence}`,
    advice: issue?.handling ?? "This QEMU version copes with NBD clients of such a disk; nothing to do",
  };
}

function otherLayer(domain: string, { target, otherLayer: other }: DiskState): Finding | undefined {
  if (other === undefined) return undefined;
  const { expected, found, frozen } = other;
  return {
    code: "DISK_OTHER_LAYER",
    subject: { domain, disk: target },
    found: `Disk ${target} is in ${found}, but by its domain snapshots it should be in ${expected}`,
    advice: frozen
      ? `Domain snapshots are based on ${found}, and every write of the guest to it damages them: stop the domain and start it with ${expected}. Until then each backup reads all of the disk`
      : `Another program has moved the disk there; each backup reads all of it until the disk is in ${expected} again`,
  };
}

function bitmapFindings(domain: string, disk: DiskState): readonly Finding[] {
  const { target, format, foreignBitmaps } = disk;
  const checkpoints = disk.checkpoints.filter(({ deleted }) => deleted !== true);
  const subject = { domain, disk: target };
  const inconsistent = checkpoints.filter((bitmap) => bitmap.inconsistent);
  const dead = deadBitmaps(disk.checkpoints);
  const lost = checkpoints.filter((bitmap) => bitmap.lost !== undefined);
  const findings: Finding[] = [];
  if (inconsistent.length > 0) {
    findings.push({
      code: "CHECKPOINT_INCONSISTENT",
      subject,
      found: `QEMU ended without saving ${listed(inconsistent)} of disk ${target}`,
      advice: `What changed since cannot be told, so the next backup of the disk reads all of it and removes ${listed(dead)}`,
    });
  } else if (lost.length > 0) {
    findings.push({
      code: "CHECKPOINT_GAP",
      subject,
      found: `What changed on disk ${target} since ${listed(lost)} is not known: ${lost.at(-1)?.lost ?? ""}`,
      advice: "A backup that would need them reads all of the disk; its own checkpoint takes their place",
    });
  } else if (dead.length > 0) {
    findings.push({
      code: "CHECKPOINT_GAP",
      subject,
      found: `No checkpoint of disk ${target} records any more: ${listed(dead.slice(-1))} is the newest and has stopped`,
      advice: `What was written since is known to none, so the next backup of the disk reads all of it and removes ${listed(dead)}`,
    });
  }
  if (format !== "qcow2") {
    findings.push({
      code: "CHECKPOINT_TRANSIENT",
      subject,
      found: `Disk ${target} is ${format}, which holds no checkpoints beyond the QEMU process`,
      advice:
        "The first backup after each start of the domain is a full; convert the disk to qcow2 to avoid that",
    });
  }
  if (foreignBitmaps.length > 0) {
    findings.push({
      code: "FOREIGN_BITMAP",
      subject,
      found: `Disk ${target} has dirty bitmaps of other programs: ${foreignBitmaps.join(", ")}`,
      advice: "They are never touched; nothing to do",
    });
  }
  return findings;
}

function listed(checkpoints: readonly CheckpointBitmap[]): string {
  return `checkpoint${checkpoints.length === 1 ? "" : "s"} ${checkpoints.map(({ name }) => name).join(", ")}`;
}

function present(...findings: readonly (Finding | undefined)[]): readonly Finding[] {
  return findings.filter((finding) => finding !== undefined);
}
