import type {
  Backup,
  BootTest,
  ListBackupsResponse,
  Restoration,
  ServedBackup,
  Verification,
} from "../api/messages.js";
import { timestampToMs } from "../api/timestamp.js";
import { formatBytes, formatDuration } from "../shared/units.js";
import { facts, formatTime, plural, table } from "./layout.js";
import { waitsInWords } from "./pace-view.js";
import { printable } from "./printable.js";

export function backupList({ backups }: ListBackupsResponse, terminal: boolean): string {
  if (backups.length === 0) return "No backups\n";
  const sound = (text: (backup: Backup) => string) => (backup: Backup) =>
    backup.damage === undefined ? text(backup) : "-";
  const overview = table(
    backups,
    [
      { head: "BACKUP", cell: ({ id }) => id },
      { head: "DOMAIN", cell: ({ domain }) => domain },
      { head: "LEVEL", cell: (backup) => (backup.damage === undefined ? levelOf(backup) : "damaged") },
      { head: "PROTECTED", cell: (backup) => (backup.protected ? "yes" : "-") },
      { head: "TIME", cell: sound(({ time }) => formatTime(time)) },
      { head: "DISKS", cell: sound(({ disks }) => disks.map(({ target }) => target).join(",")) },
      { head: "STORED", cell: sound((backup) => formatBytes(storedBytes(backup))), align: "right" },
      { head: "ENCRYPTED", cell: (backup) => encryptedOf(backup) ?? "-" },
      { head: "VERIFIED", cell: verifiedOf },
      ...(backups.some(({ lastBoot }) => lastBoot !== null) ? [{ head: "BOOTED", cell: bootedOf }] : []),
      { head: "REPOSITORY", cell: ({ repository }) => repository },
    ],
    terminal,
  );
  const notes = backups.flatMap((backup) => {
    const { damage, verifiedDamage, lastBoot } = backup;
    const reason = isByChangesAlone(backup) ? undefined : backup.reason;
    return [damage ?? reason, verifiedDamage, lastBoot?.failure].flatMap((note) =>
      note === undefined ? [] : [`${printable(backup.id)}: ${printable(note)}\n`],
    );
  });
  return notes.length === 0 ? overview : `${overview}\n${notes.join("")}`;
}

export function backupDetails(backup: Backup, terminal: boolean): string {
  const place = [
    ["Backup", backup.id],
    ["Domain", backup.domain],
    ["Repository", backup.repository],
    ["Copied from", backup.copiedFrom],
    ["Protected", backup.protected ? "yes" : undefined],
  ] as const;
  if (backup.damage !== undefined) return facts([...place, ["Damage", backup.damage]]);
  const head = facts([
    ...place,
    ["Level", `${levelOf(backup)}: ${backup.reason}`],
    ["Moment", formatTime(backup.time)],
    ["Consistency", CONSISTENCY[backup.consistency]],
    ["Checkpoint", backup.checkpoint],
    ["Not frozen", backup.quiesceFailure],
    ["Guest held", `${backup.heldMs} ms`],
    ["Guest frozen", milliseconds(backup.frozenMs)],
    [
      "Scratch",
      backup.scratchPeakBytes === undefined ? undefined : `${formatBytes(backup.scratchPeakBytes)} at most`,
    ],
    ["Took", tookOf(backup)],
    ["Waited", waitsInWords(backup.waits)],
    ["Machine files", machineFiles(backup)],
    ["Encrypted", encryptedOf(backup)],
    ["Key", backup.keyId],
    ["Verified", backup.verifiedTime === null ? undefined : verifiedOf(backup)],
    ["Damage", backup.verifiedDamage],
    ["Booted", backup.lastBoot === null ? undefined : bootedOf(backup)],
    ["Boot failure", backup.lastBoot?.failure],
  ]);
  return `${head}\n${diskTable(backup, terminal)}`;
}

/** Which disks, if not all. */
function encryptedOf({ keyId, disks }: Backup): string | undefined {
  if (keyId === undefined) return undefined;
  const encrypted = disks.filter((disk) => disk.encrypted);
  return encrypted.length === disks.length ? "yes" : encrypted.map(({ target }) => target).join(",");
}

function verifiedOf({ verifiedTime, verifiedDamage }: Backup): string {
  if (verifiedTime === null) return "-";
  return `${verifiedDamage === undefined ? "" : "damaged, "}${formatTime(verifiedTime)}`;
}

function bootedOf({ lastBoot }: Backup): string {
  if (lastBoot === null) return "-";
  return `${lastBoot.failure === undefined ? "" : "failed, "}${formatTime(lastBoot.time)}`;
}

export function bootTestDone({ backup, domain, sign, durationMs, accelerator }: BootTest): string {
  const what = `Backup ${printable(backup)} of ${printable(domain)} has booted`;
  return `${what}: ${printable(sign)} after ${formatDuration(durationMs)} (${accelerator.toUpperCase()})\n`;
}

export function backupDone(backup: Backup, terminal: boolean): string {
  const where = `repository ${printable(backup.repository)}`;
  return `Backup ${printable(backup.id)} is complete, in ${where}\n\n${backupDetails(backup, terminal)}`;
}

export function backupDeleted({ id, domain, repository, mergedInto }: Backup): string {
  const whose = `domain ${printable(domain)} in repository ${printable(repository)}`;
  const merged = mergedInto === undefined ? "" : `, merged into ${printable(mergedInto)}`;
  return `Deleted backup ${printable(id)} of ${whose}${merged}\n`;
}

export function verificationDone({ backup, disks }: Verification): string {
  const bytes = disks.reduce((sum, { checkedBytes }) => sum + checkedBytes, 0);
  const names = disks.map(({ target }) => printable(target)).join(", ");
  return `Backup ${printable(backup)} is sound: ${plural(disks.length, "disk")} (${names}), ${formatBytes(bytes)} compared with the digests\n`;
}

export function restorationDone(restoration: Restoration, terminal: boolean): string {
  const { backup, domain, time, directory, disks } = restoration;
  const files = table(
    disks,
    [
      { head: "DISK", cell: ({ target }) => target },
      { head: "FORMAT", cell: ({ format }) => format.toLowerCase() },
      { head: "SIZE", cell: ({ sizeBytes }) => formatBytes(sizeBytes), align: "right" },
      { head: "WRITTEN TO", cell: ({ kind, file }) => (kind === "BLOCK_DEVICE" ? `${file} (device)` : file) },
    ],
    terminal,
  );
  const what = `backup ${printable(backup)} of ${printable(domain)}, as it was at ${formatTime(time)}`;
  const machine = machineFiles(restoration);
  const beside = machine === undefined ? "" : `\nMachine files, in machine: ${printable(machine)}\n`;
  return `Restored ${what}${directory === "" ? "" : `, to ${printable(directory)}`}\n\n${files}${beside}`;
}

export function servedBackup({ backup, disks }: ServedBackup, terminal: boolean): string {
  const uris = table(
    disks,
    [
      { head: "DISK", cell: ({ target }) => target },
      { head: "SIZE", cell: ({ sizeBytes }) => formatBytes(sizeBytes), align: "right" },
      { head: "URI", cell: ({ uri }) => uri },
    ],
    terminal,
  );
  return `Serving backup ${printable(backup)} read-only until interrupted\n\n${uris}`;
}

export const CONSISTENCY = {
  CONSISTENCY_UNSPECIFIED: "unknown",
  CLEAN: "clean (the domain was inactive)",
  FILESYSTEM: "file systems frozen",
  CRASH: "crash (as after a power cut)",
} as const;

function machineFiles({ machineFiles: files }: Pick<Backup, "machineFiles">): string | undefined {
  return files.length === 0 ? undefined : files.map(({ path }) => path).join(", ");
}

export function milliseconds(ms: number | undefined): string | undefined {
  return ms === undefined ? undefined : `${ms} ms`;
}

function tookOf({ startTime, endTime }: Backup): string | undefined {
  if (startTime === null || endTime === null) return undefined;
  return formatDuration(timestampToMs(endTime) - timestampToMs(startTime));
}

function levelOf({ level }: Backup): string {
  return level.toLowerCase();
}

/** So is what nobody needs to be told about. */
function isByChangesAlone({ level, disks }: Backup): boolean {
  return level === "FULL" || disks.every(({ mode }) => mode === "CHANGES");
}

function storedBytes({ disks }: Backup): number {
  return disks.reduce((sum, disk) => sum + disk.storedBytes, 0);
}

function diskTable({ disks }: Backup, terminal: boolean): string {
  return table(
    disks,
    [
      { head: "DISK", cell: ({ target }) => target },
      { head: "SIZE", cell: ({ sizeBytes }) => formatBytes(sizeBytes), align: "right" },
      { head: "MODE", cell: ({ mode }) => mode.toLowerCase() },
      { head: "READ", cell: ({ readBytes }) => formatBytes(readBytes), align: "right" },
      { head: "STORED", cell: (disk) => formatBytes(disk.storedBytes), align: "right" },
      { head: "ZEROES", cell: ({ zeroBytes }) => formatBytes(zeroBytes), align: "right" },
      { head: "TOOK", cell: ({ durationMs }) => formatDuration(durationMs), align: "right" },
    ],
    terminal,
  );
}
