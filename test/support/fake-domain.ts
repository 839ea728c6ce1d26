import type { WriteFigures } from "../../src/model/guest-pace.js";
import type { BlockDriver, DriverFactory } from "../../src/ports/block-driver.js";
import type { BlockReader, ReaderFactory } from "../../src/ports/block-io.js";
import { FleeceError } from "../../src/shared/errors.js";
import type { DiskFormat, ExportAddress } from "../../src/model/snapshot-plan.js";
import { FakeDisk } from "./fake-disk.js";
import { FakeHost } from "./fake-host.js";
import { FakeInactiveDriver } from "./fake-inactive-driver.js";
import { FakeQemu } from "./fake-qemu.js";
import type { FakeExport, FakeImage } from "./fake-reader.js";
import { FakeReader } from "./fake-reader.js";
import { FakeRunningDriver } from "./fake-running-driver.js";

/**
 * Is waited for before and after each thing that a fake does, with the name of the point: a test may let something happen
 * there, throw, or never return (as in a process that was killed).
 */
export type Gate = (point: string) => Promise<void> | void;

/** One driver's connection to a QEMU process; `alive` ends with either. */
export interface Session {
  alive: boolean;
}

export interface FakeDiskSpec {
  readonly target: string;
  readonly format?: DiskFormat;
  readonly sizeBytes: number;
}

/** A domain in memory, with everything around it that a driver can reach. Starts running unless told otherwise. */
export class FakeDomain implements DriverFactory {
  readonly name: string;
  readonly disks: ReadonlyMap<string, FakeDisk>;
  readonly host: FakeHost;
  /** The content of all planned disks at the frozen moment, by the name of the checkpoint made then. */
  readonly moments = new Map<string, Map<string, Buffer>>();
  /** Exports of others that readers can reach too: of a repository, for example. */
  readonly served: FakeExport[] = [];
  /** What QEMU can push disks into, and readers read back. */
  readonly images = new Set<FakeImage>();
  gate: Gate = () => undefined;
  qemu: FakeQemu | undefined;
  /** How long a pause is; by default one never ends by itself, so that nothing happens behind a test's back. */
  pause: (signal: AbortSignal) => Promise<void> = (signal) => aborted(signal);
  /** Of the guest's writes, for each disk. */
  writeFigures: WriteFigures = { operations: 0, totalMs: 0 };
  readonly #sessions = new Set<Session>();
  #timeMs = Date.UTC(2026, 0, 1);

  constructor(
    disks: readonly FakeDiskSpec[],
    options: { readonly name?: string; readonly host?: FakeHost; readonly running?: boolean } = {},
  ) {
    this.name = options.name ?? "vm";
    this.host = options.host ?? new FakeHost();
    this.disks = new Map(
      disks.map(({ target, format, sizeBytes }) => [
        target,
        new FakeDisk(target, format ?? "qcow2", sizeBytes),
      ]),
    );
    if (options.running !== false) this.start();
  }

  disk(target: string): FakeDisk {
    const disk = this.disks.get(target);
    if (disk !== undefined) return disk;
    throw new FleeceError("DISK_NOT_FOUND", `Domain ${this.name} has no disk ${target}`);
  }

  /** Rises with every call, as a clock without pauses would. */
  now(): number {
    return (this.#timeMs += 1000);
  }

  readonly sleep = async (_ms: number, signal: AbortSignal): Promise<void> => {
    signal.throwIfAborted();
    await this.pause(signal);
    signal.throwIfAborted();
  };

  start(): void {
    this.qemu = new FakeQemu();
    for (const disk of this.disks.values()) disk.open();
  }

  /** The guest shuts down: QEMU saves persistent bitmaps. */
  stop(): void {
    this.#end("clean");
  }

  /** QEMU is killed: what bitmaps it had loaded are inconsistent, what it had made is gone. */
  crash(): void {
    this.#end("crash");
  }

  restart(): void {
    this.stop();
    this.start();
  }

  /** All connections break; the QEMU process goes on and can be reached anew. */
  disconnect(): void {
    for (const session of this.#sessions) session.alive = false;
    this.#sessions.clear();
  }

  /** A write of the guest, or of a program that works on the image while the domain is inactive. */
  write(target: string, offset: number, length: number, pattern: number): void {
    if (this.qemu?.status === "paused") throw new Error("A guest that is stopped does not write");
    this.disk(target).fill(offset, length, pattern);
  }

  async open(domain: string, signal?: AbortSignal): Promise<BlockDriver> {
    if (domain !== this.name) throw new FleeceError("DOMAIN_NOT_FOUND", `There is no domain ${domain}`);
    await this.gate("open: before");
    signal?.throwIfAborted();
    const driver = this.#driver();
    await this.gate("open: after");
    return driver;
  }

  /** For exports of this domain and of its storage daemons. */
  readonly readers: ReaderFactory = { open: (address, signal) => this.#openReader(address, signal) };

  #openReader({ socketPath, exportName }: ExportAddress, signal?: AbortSignal): Promise<BlockReader> {
    signal?.throwIfAborted();
    const daemons = [...this.host.daemons.values()].flatMap(({ exports }) => [...exports.values()]);
    const found = [...(this.qemu?.exports.values() ?? []), ...daemons, ...this.served, ...this.images].find(
      (each) => each.socketPath === socketPath && each.exportName === exportName && !each.ended,
    );
    if (found !== undefined) return Promise.resolve(new FakeReader(found));
    return Promise.reject(new FleeceError("NBD_FAILED", `Nothing is exported as ${exportName}`));
  }

  /** The process that holds them has ended, for images of which nobody else knows. */
  endImages(images: Iterable<FakeImage> = this.images): void {
    for (const image of [...images]) {
      image.ended = true;
      this.images.delete(image);
    }
  }

  traces(): unknown {
    return { qemu: this.qemu?.traces(), host: this.host.traces() };
  }

  #driver(): BlockDriver {
    if (this.qemu === undefined) return new FakeInactiveDriver(this);
    // A QMP monitor on a Unix socket serves one client at a time: a driver that was left open locks everybody out.
    if (this.#sessions.size > 0) throw new FleeceError("DOMAIN_UNREACHABLE", "The monitor is in use");
    const session: Session = { alive: true };
    this.#sessions.add(session);
    return new FakeRunningDriver(this, this.qemu, session, () => this.#sessions.delete(session));
  }

  #end(how: "clean" | "crash"): void {
    this.disconnect();
    this.qemu?.end();
    this.qemu = undefined;
    for (const disk of this.disks.values()) disk.close(how);
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
