import { formatBytes } from "../shared/units.js";
import type { BackupEntry, IntactEntry } from "./backup.js";
import { byTime, isIntact } from "./backup.js";
import type { Finding } from "./finding.js";
import type { LevelDecision } from "./level.js";
import type { DiskState, DomainState } from "./snapshot-plan.js";

/** What the repository's backups and the disks say together: the next backup's level, and what is different since the last. */
export function chainFindings(
  { domain, disks }: DomainState,
  entries: readonly BackupEntry[],
  decision: LevelDecision,
): readonly Finding[] {
  const newest = entries.filter(isIntact).toSorted(byTime).at(-1);
  const last = decision.level === "incremental" ? decision.parent : newest;
  return [
    levelFinding(domain, disks, newest, decision),
    ...compared(domain, decision),
    ...(last === undefined ? [] : differences(domain, disks, last)),
    ...damaged(domain, entries),
  ];
}

function levelFinding(
  domain: string,
  disks: readonly DiskState[],
  newest: IntactEntry | undefined,
  decision: LevelDecision,
): Finding {
  const subject = { domain };
  const { reason } = decision;
  if (decision.level === "incremental") {
    const found = `The next backup is incremental, based on backup ${decision.parent.id}`;
    const whole = [...decision.disks].flatMap(([target, { mode }]) => (mode === "changes" ? [] : [target]));
    const advice =
      whole.length === 0
        ? "It reads only what changed since then"
        : `It reads only what changed since then, but all of ${whole.join(", ")}`;
    return { code: "NEXT_INCREMENTAL", subject, found, advice };
  }
  const size = formatBytes(disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0));
  const found = `The next backup is a full: ${reason}`;
  if (newest === undefined) {
    const advice = `It reads all that the disks hold of their ${size}; those after it are incremental`;
    return { code: "FIRST_BACKUP", subject, found, advice };
  }
  const advice = `It reads all that the disks hold of their ${size} and starts a new chain; older backups can still be restored`;
  return { code: "NEXT_FULL", subject, found, advice };
}

/** Where it is decided by facts that the other findings do not name: those that make a disk new or resized. */
function compared(domain: string, decision: LevelDecision): readonly Finding[] {
  if (decision.level === "full") return [];
  return [...decision.disks].flatMap(([target, { mode, reason }]) =>
    mode !== "compare"
      ? []
      : [
          {
            code: "DISK_COMPARED",
            subject: { domain, disk: target },
            found: `What changed on disk ${target} since backup ${decision.parent.id} is not known: ${reason}`,
            advice:
              "The next backup reads all of it and stores what differs; those after it read changes again",
          } satisfies Finding,
        ],
  );
}

function differences(domain: string, disks: readonly DiskState[], last: IntactEntry): readonly Finding[] {
  const before = last.manifest.disks;
  const gone = before.filter(({ target }) => disks.every((disk) => disk.target !== target));
  return [
    ...disks.flatMap((disk) => {
      const known = before.find(({ target }) => target === disk.target);
      return known === undefined
        ? [newDisk(domain, disk, last)]
        : [
            ...resized(domain, disk, last, known.sizeBytes),
            ...converted(domain, disk, last, known.sourceFormat),
          ];
    }),
    ...gone.map(({ target }): Finding => ({
      code: "DISK_GONE",
      subject: { domain, disk: target },
      found: `Backup ${last.id} holds disk ${target}, which the domain does not have now`,
      advice: "The next backup goes without it; earlier ones still restore it",
    })),
  ];
}

function newDisk(domain: string, { target }: DiskState, { id }: IntactEntry): Finding {
  return {
    code: "DISK_NEW",
    subject: { domain, disk: target },
    found: `Backup ${id}, the last one, does not hold disk ${target}`,
    advice:
      "The next backup reads and stores all of it; name the other disks with --disk to go on without it",
  };
}

function resized(
  domain: string,
  { target, sizeBytes }: DiskState,
  { id }: IntactEntry,
  before: number,
): readonly Finding[] {
  if (sizeBytes === before) return [];
  return [
    {
      code: "DISK_RESIZED",
      subject: { domain, disk: target },
      found: `Disk ${target} has ${bytes(sizeBytes)} and had ${bytes(before)} in backup ${id}`,
      advice: "An incremental cannot change a disk's size, so the next backup stores all of this disk",
    },
  ];
}

function converted(
  domain: string,
  { target, format }: DiskState,
  { id }: IntactEntry,
  before: DiskState["format"],
): readonly Finding[] {
  if (format === before) return [];
  return [
    {
      code: "DISK_FORMAT_CHANGED",
      subject: { domain, disk: target },
      found: `Disk ${target} is ${format} and was ${before} in backup ${id}`,
      advice:
        "Its checkpoints did not come along unless it was converted with them; a restore makes the format of its backup",
    },
  ];
}

function damaged(domain: string, entries: readonly BackupEntry[]): readonly Finding[] {
  return entries.flatMap((entry) =>
    isIntact(entry)
      ? []
      : [
          {
            code: "BACKUP_DAMAGED",
            subject: { domain },
            found: `Backup ${entry.id} is damaged: ${entry.damage}`,
            advice:
              "It and all that are based on it cannot be restored; delete them when nothing else needs them",
          } satisfies Finding,
        ],
  );
}

/** With the exact number where the rounded one would hide a difference. */
function bytes(count: number): string {
  return `${formatBytes(count)} (${count} bytes)`;
}
