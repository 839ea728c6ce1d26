import { MultiBar, type SingleBar } from "cli-progress";
import type { BackupProgress, DomainSnapshotProgress, Progress } from "../api/messages.js";
import { formatBytes } from "../shared/units.js";
import { paceInWords } from "./pace-view.js";
import { printable } from "./printable.js";
import { Rate } from "./rate.js";
import { StreamAdapter, type TextStream } from "./streams.js";

type Started = NonNullable<BackupProgress["started"]>;
type DiskProgress = NonNullable<BackupProgress["disk"]>;

const PHASES = {
  PHASE_UNSPECIFIED: "Working",
  PREPARING: "Preparing",
  MEMORY: "Saving memory",
  DISKS: "Switching disks",
  CHECKING: "Checking",
  LOADING: "Loading memory",
  MERGING: "Merging",
  FINISHING: "Finishing",
} as const;

interface Row {
  readonly bar: SingleBar;
  readonly sizeBytes: number;
  readonly rate: Rate;
  /** The furthest so far: requests in flight are answered in any order. */
  positionBytes: number;
}

/** One bar per disk on a terminal; nothing anywhere else. Lines that are logged meanwhile go above the bars. */
export class ProgressView {
  /** Where logs must go, so that they and the bars do not overwrite each other. */
  readonly log: TextStream;
  readonly #stderr: TextStream;
  readonly #rows = new Map<string, Row>();
  #bars: MultiBar | undefined;
  #scratch: SingleBar | undefined;
  #pace: SingleBar | undefined;
  #stopped = false;
  /** Of a domain snapshot. */
  #phase: string | undefined;

  constructor(stderr: TextStream) {
    this.#stderr = stderr;
    const write = (text: string): void => this.#write(text);
    this.log = { write, isTTY: stderr.isTTY === true };
  }

  /** To be handed to a call of the API. */
  readonly show = (progress: Progress): void => {
    if (this.#stopped || this.#stderr.isTTY !== true) return;
    if ("consoleLine" in progress) {
      if (progress.consoleLine !== "") this.log.write(`${printable(progress.consoleLine)}\n`);
      return;
    }
    if ("phase" in progress) {
      this.#showPhase(progress);
      return;
    }
    const { started, scratch, disk, pace, domain } = progress;
    // Disks of several domains may have the same target.
    const prefix = domain === undefined ? "" : `${domain} `;
    if (started) this.#start(started, prefix);
    if (scratch) this.#showScratch(scratch, prefix);
    if (pace) this.#showPace(pace, prefix);
    if (disk) this.#showDisk({ ...disk, target: prefix + disk.target });
  };

  /** Takes the bars away for good; what they led to is in the answer. Idempotent. */
  stop(): void {
    this.#stopped = true;
    // Writes what was logged since the last redraw, which would be lost.
    this.#bars?.update();
    this.#bars?.stop();
    this.#bars = undefined;
    this.#scratch = undefined;
    this.#pace = undefined;
    this.#rows.clear();
  }

  /** One bar at a time, or a line where nothing is counted. */
  #showPhase({ phase, target, doneBytes, totalBytes }: DomainSnapshotProgress): void {
    const label = `${PHASES[phase]}${target === undefined ? "" : ` ${target}`}`;
    if (totalBytes === undefined) {
      if (label !== this.#phase) this.log.write(`${printable(label)}\n`);
      this.#phase = label;
      return;
    }
    if (label !== this.#phase) {
      for (const { bar } of this.#rows.values()) this.#bars?.remove(bar);
      this.#rows.clear();
    }
    this.#phase = label;
    const row = this.#rows.get(label) ?? this.#add(label, totalBytes, label.length);
    const positionBytes = doneBytes ?? 0;
    row.bar.setTotal(totalBytes);
    const facts = `${formatBytes(positionBytes)} of ${formatBytes(totalBytes)}`;
    row.bar.update(positionBytes, { facts });
  }

  #start({ level, reason, disks }: Started, prefix: string): void {
    this.log.write(
      `${printable(prefix)}${level === "FULL" ? "Full" : "Incremental"} backup: ${printable(reason)}\n`,
    );
    // A domain that was started during its backup is begun again.
    for (const [label, { bar }] of this.#rows) {
      if (!label.startsWith(prefix)) continue;
      this.#bars?.remove(bar);
      this.#rows.delete(label);
    }
    const width = prefix.length + Math.max(...disks.map(({ target }) => target.length));
    for (const { target, sizeBytes } of disks) this.#add(prefix + target, sizeBytes, width);
  }

  #showDisk(progress: DiskProgress): void {
    const { target, sizeBytes } = progress;
    const row = this.#rows.get(target) ?? this.#add(target, sizeBytes ?? 0, target.length);
    row.positionBytes = Math.max(row.positionBytes, progress.positionBytes);
    const done = progress.readBytes ?? progress.positionBytes;
    row.bar.update(row.positionBytes, { facts: factsOf(progress, row.rate.at(performance.now(), done)) });
  }

  #add(target: string, sizeBytes: number, width: number): Row {
    this.#bars ??= new MultiBar({
      format: "{target}  {bar} {percentage}%  {facts}",
      stream: new StreamAdapter(this.#stderr),
      barCompleteChar: "█",
      barIncompleteChar: "░",
      barsize: 24,
      hideCursor: true,
      clearOnComplete: true,
      gracefulExit: false,
      // Bars are cut at the terminal's width, while lines of the log may be as long as they need.
      linewrap: true,
      emptyOnZero: true,
      formatValue: (value, _options, type) =>
        type === "percentage" ? String(value).padStart(3) : String(value),
    });
    const label = printable(target).padEnd(width);
    const bar = this.#bars.create(sizeBytes, 0, { target: label, facts: "" });
    const row = { bar, sizeBytes, rate: new Rate(), positionBytes: 0 };
    this.#rows.set(target, row);
    return row;
  }

  /** A line below the disks; before those are known there is none. */
  #showScratch({ usedBytes, limitBytes }: NonNullable<BackupProgress["scratch"]>, prefix: string): void {
    const limit = limitBytes === undefined ? "" : ` of ${formatBytes(limitBytes)}`;
    const text = `${printable(prefix)}Scratch space: ${formatBytes(usedBytes)}${limit}`;
    this.#scratch ??= this.#bars?.create(1, 0, { text }, { format: "{text}" });
    this.#scratch?.update({ text });
  }

  /** A line of its own, since it says why a backup is slow. */
  #showPace(pace: NonNullable<BackupProgress["pace"]>, prefix: string): void {
    const text = `${printable(prefix)}Limits: ${paceInWords(pace)}`;
    this.#pace ??= this.#bars?.create(1, 0, { text }, { format: "{text}" });
    this.#pace?.update({ text });
  }

  #write(text: string): void {
    if (this.#bars === undefined) this.#stderr.write(text);
    else this.#bars.log(text);
  }
}

function factsOf(progress: DiskProgress, bytesPerSecond: number | undefined): string {
  const { readBytes, storedBytes, positionBytes, sizeBytes } = progress;
  const amounts =
    readBytes === undefined
      ? `${formatBytes(positionBytes)} of ${formatBytes(sizeBytes ?? 0)}`
      : `read ${formatBytes(readBytes)}, stored ${formatBytes(storedBytes ?? 0)}`;
  return bytesPerSecond === undefined ? amounts : `${amounts}, ${formatBytes(Math.round(bytesPerSecond))}/s`;
}
