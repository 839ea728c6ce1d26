import type { BackupLimits, BackupWaits, PresentRates, WaitReason } from "../model/backup-limits.js";
import { hasWaited, ratesAt, WAIT_REASONS } from "../model/backup-limits.js";
import { BLOCK_SIZE } from "../model/extents.js";
import { FREE_PACE, type GuestPace, nextPace, worstMeanMs, type WriteFigures } from "../model/guest-pace.js";
import type { BlockDriver, CopySpeed } from "../ports/block-driver.js";
import type { Clock } from "../ports/clock.js";
import { BURST_SECONDS } from "../shared/token-bucket.js";
import { SharedRate } from "./shared-rate.js";
import { WaitMeter } from "./wait-meter.js";

/** Progress is told so often. */
const TELL_MS = 1000;

/** QEMU keeps to a speed by slices of 100 ms; a copy that comes so near to it would be faster without. */
const HELD_BACK_SHARE = 0.8;

/** What one run of a job may take, or one backup that somebody has asked for, of all its disks and domains together. */
export class RunPace {
  readonly limits: BackupLimits;
  readonly read: SharedRate;
  readonly write: SharedRate;
  readonly clock: Clock;
  #ratesOf = { second: NaN, rates: { readBytesPerSecond: Infinity, writeBytesPerSecond: Infinity } };

  constructor(limits: BackupLimits, clock: Clock) {
    this.limits = limits;
    this.clock = clock;
    this.read = new SharedRate(clock);
    this.write = new SharedRate(clock);
    this.read.bytesPerSecond = limits.readBytesPerSecond ?? Infinity;
    this.write.bytesPerSecond = limits.writeBytesPerSecond ?? Infinity;
  }

  /** Brings both rates to what the hour says. */
  refresh(): void {
    if (this.limits.hours.length === 0) return;
    const { readBytesPerSecond, writeBytesPerSecond } = this.#rates();
    this.read.bytesPerSecond = readBytesPerSecond;
    this.write.bytesPerSecond = writeBytesPerSecond;
  }

  /** Time zones are costly to ask about, and nothing changes within a second. */
  #rates(): PresentRates {
    const nowMs = this.clock.now();
    const second = Math.floor(nowMs / 1000);
    if (second !== this.#ratesOf.second) this.#ratesOf = { second, rates: ratesAt(this.limits, nowMs) };
    return this.#ratesOf.rates;
  }
}

/** How fast a backup may go now, and for how long it has waited so far. */
export interface PaceReport {
  /** Unset where nothing limits it. */
  readonly readBytesPerSecond?: number;
  readonly writeBytesPerSecond?: number;
  readonly guestBytesPerSecond?: number;
  readonly waits: BackupWaits;
}

/** Of whoever reads one disk piece by piece. */
export interface ReadPace {
  /** The longest piece to read at once: what is under way at once is not more than may come at once. */
  pieceBytes(mostBytes: number): number;
  /** Resolves when so much may be read. Rejects as soon as the signal fires. */
  beforeRead(bytes: number, signal: AbortSignal): Promise<void>;
  /** So much has been stored. */
  wrote(bytes: number): void;
}

export type CopyPace = CopySpeed & Disposable;

/** One backup under the limits of its run, and with regard to its guest. */
export class BackupPace {
  readonly #run: RunPace;
  readonly #guest: SharedRate;
  readonly #meter: WaitMeter;
  readonly #readsAtOnce: number;
  readonly #onReport: ((report: PaceReport) => void) | undefined;
  #toldMs: number;
  #guestPace: GuestPace = FREE_PACE;
  #figures: ReadonlyMap<string, WriteFigures> | undefined;
  #readBytes = 0;
  #looked: { readonly atMs: number; readonly readBytes: number };

  constructor(
    run: RunPace,
    options: { readonly readsAtOnce: number; readonly onReport?: ((report: PaceReport) => void) | undefined },
  ) {
    this.#run = run;
    this.#guest = new SharedRate(run.clock);
    this.#meter = new WaitMeter(run.clock);
    this.#readsAtOnce = options.readsAtOnce;
    this.#onReport = options.onReport;
    this.#toldMs = run.clock.monotonicMs();
    this.#looked = { atMs: this.#toldMs, readBytes: 0 };
  }

  get waits(): BackupWaits {
    return this.#meter.waits;
  }

  /** Runs `action` as one of those who read. Without `reads`, what it reads is no disk of the guest's. */
  async reading<T>(how: { readonly reads: boolean }, action: (pace: ReadPace) => Promise<T>): Promise<T> {
    const rates = how.reads ? [this.#run.read, this.#guest] : [];
    using _write = this.#run.write.join("reader");
    using _read = rates[0]?.join("reader");
    using _guest = rates[1]?.join("reader");
    return await action({
      pieceBytes: (most) => this.#pieceBytes([...rates, this.#run.write], most),
      beforeRead: (bytes, signal) => this.#beforeRead(how.reads ? bytes : undefined, signal),
      wrote: (bytes) => void this.#run.write.spend(bytes),
    });
  }

  /** A copy that does not write into the repository knows no write limit. */
  copying({ writes }: { readonly writes: boolean }): CopyPace {
    const rates = new Map<WaitReason, SharedRate>([
      ["readLimit", this.#run.read],
      ["guestLatency", this.#guest],
      ...(writes ? [["writeLimit", this.#run.write] as const] : []),
    ]);
    const memberships = [...rates.values()].map((rate) => rate.join("copy"));
    let last = { atMs: this.#run.clock.monotonicMs(), bytes: 0 };
    let told: { readonly reason: WaitReason; readonly speed: number } | undefined;
    return {
      speed: () => {
        this.#run.refresh();
        const [slowest] = [...rates]
          .map(([reason, rate]) => ({ reason, speed: rate.copyBytesPerSecond }))
          .toSorted((a, b) => a.speed - b.speed);
        told = slowest?.speed === Infinity ? undefined : slowest;
        return told?.speed ?? Infinity;
      },
      copied: (bytes) => {
        const atMs = this.#run.clock.monotonicMs();
        const movedBytes = Math.max(0, bytes - last.bytes);
        const passedMs = atMs - last.atMs;
        this.#readBytes += movedBytes;
        if (told !== undefined && movedBytes * 1000 >= HELD_BACK_SHARE * told.speed * passedMs) {
          this.#meter.add(told.reason, last.atMs);
        }
        last = { atMs, bytes };
        this.#tell();
      },
      [Symbol.dispose]: () => {
        for (const membership of memberships) membership[Symbol.dispose]();
      },
    };
  }

  /** Asks the driver how the guest's writes fare, and slows down or speeds up by it. Does nothing where no bound is set. */
  async lookAtGuest(driver: BlockDriver, targets: readonly string[], signal: AbortSignal): Promise<void> {
    const { guestLatencyMs: boundMs } = this.#run.limits;
    if (boundMs === undefined) return;
    const figures = await driver.guestWrites(targets, signal);
    const before = this.#figures;
    this.#figures = figures;
    const atMs = this.#run.clock.monotonicMs();
    const passedMs = Math.max(1, atMs - this.#looked.atMs);
    const readBytesPerSecond = ((this.#readBytes - this.#looked.readBytes) * 1000) / passedMs;
    this.#looked = { atMs, readBytes: this.#readBytes };
    if (before === undefined) return;
    const meanWriteMs = worstMeanMs(before, figures);
    this.#guestPace = nextPace(this.#guestPace, { meanWriteMs, boundMs, readBytesPerSecond });
    this.#guest.bytesPerSecond = this.#guestPace.bytesPerSecond;
    this.#tell();
  }

  #pieceBytes(rates: readonly SharedRate[], most: number): number {
    this.#run.refresh();
    const rate = Math.min(...rates.map(({ readersBytesPerSecond }) => readersBytesPerSecond));
    const bytes = Math.min(most, (rate * BURST_SECONDS) / this.#readsAtOnce);
    return Math.max(BLOCK_SIZE, Math.floor(bytes / BLOCK_SIZE) * BLOCK_SIZE);
  }

  /** Undefined bytes cost the guest nothing. */
  async #beforeRead(bytes: number | undefined, signal: AbortSignal): Promise<void> {
    this.#run.refresh();
    this.#readBytes += bytes ?? 0;
    const pauses: Readonly<Record<WaitReason, number>> = {
      readLimit: bytes === undefined ? 0 : this.#run.read.spend(bytes),
      writeLimit: this.#run.write.debtMs(),
      guestLatency: bytes === undefined ? 0 : this.#guest.spend(bytes),
    };
    const longestMs = Math.max(...Object.values(pauses));
    const reason = WAIT_REASONS.find((each) => pauses[each] === longestMs);
    if (longestMs === 0 || reason === undefined) return;
    using _wait = this.#meter.begin(reason);
    await this.#run.clock.sleep(longestMs, signal);
    this.#tell();
  }

  #tell(): void {
    const nowMs = this.#run.clock.monotonicMs();
    if (this.#onReport === undefined || nowMs - this.#toldMs < TELL_MS || !hasWaited(this.waits)) return;
    this.#toldMs = nowMs;
    const { readBytesPerSecond, writeBytesPerSecond } = ratesAt(this.#run.limits, this.#run.clock.now());
    this.#onReport({
      ...(readBytesPerSecond === Infinity ? {} : { readBytesPerSecond }),
      ...(writeBytesPerSecond === Infinity ? {} : { writeBytesPerSecond }),
      ...(this.#guestPace.bytesPerSecond === Infinity
        ? {}
        : { guestBytesPerSecond: Math.round(this.#guestPace.bytesPerSecond) }),
      waits: this.waits,
    });
  }
}
