import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type BlockState, readBlockState } from "./block-state.js";
import { BoundProcess, type ProcessEnd } from "./bound-process.js";
import { type JsonObject, Monitor, type MonitorEvent } from "./monitor.js";
import { formatNodeName, qemuArguments, qemuIoPath, type TestDisk, type VmHardware } from "./vm-arguments.js";

/** Ends a start that hangs; QEMU listens within tens of milliseconds. */
const startTimeoutMs = 60_000;

export interface TestVmOptions extends VmHardware {
  /** Where the sockets and QEMU's output go. Its path must be short: sockets allow 107 bytes. */
  readonly directory: string;
  /** Tells the files of several VMs in one directory apart. Default: `vm`. */
  readonly name?: string;
  /** How many more QMP sockets, for tests with several agents. Default: 0. */
  readonly extraQmp?: number;
}

/** What the guest's device was told: QEMU's own words, and whether they mean success. */
export interface GuestVerdict {
  readonly ok: boolean;
  readonly text: string;
}

/** A real QEMU, with a QMP socket for the agent under test and one for the test itself. */
export class TestVm implements AsyncDisposable {
  /** The socket for the agent under test. QMP sockets serve one client at a time. */
  readonly qmpPath: string;
  readonly extraQmpPaths: readonly string[];
  /** The file that QEMU's error output goes to. */
  readonly stderrPath: string;
  readonly disks: readonly TestDisk[];
  readonly #options: TestVmOptions;
  readonly #stdoutPath: string;
  readonly #monitorPath: string;
  #process: BoundProcess | undefined;
  #monitor: Monitor | undefined;
  #guestTurn: Promise<unknown> = Promise.resolve();

  private constructor(options: TestVmOptions) {
    const file = (suffix: string) => join(options.directory, `${options.name ?? "vm"}${suffix}`);
    this.#options = options;
    this.disks = options.disks;
    this.qmpPath = file(".qmp");
    this.extraQmpPaths = Array.from({ length: options.extraQmp ?? 0 }, (_, index) =>
      file(`-${index + 2}.qmp`),
    );
    this.#monitorPath = file("-test.qmp");
    this.#stdoutPath = file(".out");
    this.stderrPath = file(".err");
  }

  static async start(options: TestVmOptions): Promise<TestVm> {
    const vm = new TestVm(options);
    await vm.#start();
    return vm;
  }

  get pid(): number {
    return this.#runningProcess().pid;
  }

  get running(): boolean {
    return this.#process?.running ?? false;
  }

  /** QMP events that have come over the test's own socket since the last start. */
  get events(): readonly MonitorEvent[] {
    return this.#runningMonitor().events;
  }

  /** A QMP command over the test's own socket. */
  async qmp(command: string, args?: JsonObject): Promise<unknown> {
    return this.#runningMonitor().execute(command, args);
  }

  async waitForEvent(
    name: string,
    options: { timeoutMs: number; accept?: (event: MonitorEvent) => boolean },
  ): Promise<MonitorEvent> {
    return this.#runningMonitor().waitForEvent(name, options);
  }

  /** Everything in QEMU's block layer that a backup could leave behind, fit for comparison by equality. */
  async blockState(): Promise<BlockState> {
    return readBlockState(this.#runningMonitor());
  }

  /** The node of the disk's format layer as started; a snapshot or filter on top has another name. */
  nodeName(target: string): string {
    return formatNodeName(this.disk(target));
  }

  disk(target: string): TestDisk {
    const disk = this.disks.find((candidate) => candidate.target === target);
    if (disk === undefined) throw new Error(`Expected one of the VM's disks, got ${target}`);
    return disk;
  }

  /**
   * Fills `length` bytes at `offset` with the byte `pattern` (0–255), as the guest's driver would. It stays when QEMU is killed: the
   * firmware's driver wants no write cache, so QEMU writes through.
   */
  async guestWrite(target: string, offset: number, length: number, pattern: number): Promise<GuestVerdict> {
    return this.guestIo(target, `write -P ${pattern} ${offset} ${length}`);
  }

  async guestWriteZeroes(
    target: string,
    offset: number,
    length: number,
    options: { unmap?: boolean } = {},
  ): Promise<GuestVerdict> {
    const flags = options.unmap === true ? "-z -u" : "-z";
    return this.guestIo(target, `write ${flags} ${offset} ${length}`);
  }

  async guestDiscard(target: string, offset: number, length: number): Promise<GuestVerdict> {
    return this.guestIo(target, `discard ${offset} ${length}`);
  }

  /** Reads, and fails unless every byte is `pattern`. */
  async guestRead(target: string, offset: number, length: number, pattern: number): Promise<GuestVerdict> {
    return this.guestIo(target, `read -P ${pattern} ${offset} ${length}`);
  }

  async guestFlush(target: string): Promise<GuestVerdict> {
    return this.guestIo(target, "flush");
  }

  /** Any command of qemu-io on the guest's device. One at a time: the verdicts share QEMU's stdout. */
  async guestIo(target: string, command: string): Promise<GuestVerdict> {
    const disk = this.disk(target);
    if (disk.iothread === true) throw new Error(`QEMU aborts on qemu-io for ${target}: it is in an iothread`);
    const turn = this.#guestTurn.then(() => this.#guestIoNow(disk, command));
    this.#guestTurn = turn.catch(() => undefined);
    return turn;
  }

  /** Ends QEMU cleanly: persistent bitmaps are written. */
  async quit(): Promise<ProcessEnd> {
    const running = this.#runningProcess();
    // QEMU may close the socket before the reply is read.
    await this.qmp("quit").catch(() => undefined);
    const end = await running.ended;
    this.#monitor?.close();
    return end;
  }

  /** SIGKILL, as a crash of QEMU or of the host would. */
  async kill(): Promise<ProcessEnd> {
    const end = await this.#runningProcess().stop("SIGKILL");
    this.#monitor?.close();
    return end;
  }

  /** Starts again with the same disks and sockets, after a clean end if it still runs. */
  async restart(): Promise<void> {
    if (this.running) await this.quit();
    await this.#start();
  }

  async waitForEnd(): Promise<ProcessEnd> {
    return this.#runningProcess().ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process?.stop("SIGKILL");
    this.#monitor?.close();
  }

  async #start(): Promise<void> {
    const qmpPaths = [this.qmpPath, ...this.extraQmpPaths, this.#monitorPath];
    const process = await BoundProcess.start("qemu-system-x86_64", qemuArguments(this.#options, qmpPaths), {
      stdoutPath: this.#stdoutPath,
      stderrPath: this.stderrPath,
    });
    this.#process = process;
    const failure = new AbortController();
    void process.ended.then(() => failure.abort());
    try {
      const signal = AbortSignal.any([failure.signal, AbortSignal.timeout(startTimeoutMs)]);
      this.#monitor = await Monitor.connect(this.#monitorPath, signal);
    } catch (cause) {
      await process.stop("SIGKILL");
      throw new Error(`QEMU did not start: ${await readFile(this.stderrPath, "utf8")}`, { cause });
    }
  }

  /**
   * The human monitor answers when the command is done; the verdict is then complete in QEMU's stdout. That is a
   * file rather than a pipe, so that it can be read at that very moment.
   */
  async #guestIoNow(disk: TestDisk, command: string): Promise<GuestVerdict> {
    const before = (await readFile(this.#stdoutPath)).length;
    const reply = await this.qmp("human-monitor-command", {
      "command-line": `qemu-io -d ${qemuIoPath(disk)} "${command}"`,
    });
    const printed = (await readFile(this.#stdoutPath)).subarray(before).toString();
    const text = `${String(reply)}${printed}`.trim();
    return { ok: !/failed|error|invalid|not found|non-numeric/i.test(text), text };
  }

  #runningProcess(): BoundProcess {
    if (this.#process === undefined) throw new Error("The VM was never started");
    return this.#process;
  }

  #runningMonitor(): Monitor {
    if (this.#monitor === undefined) throw new Error("The VM was never started");
    return this.#monitor;
  }
}
