import { join } from "node:path";
import { type TestDisk } from "../support/vm-arguments.js";
import { TestVm } from "../support/vm.js";
import type { GuestFiles } from "./build-guest.js";
import { type CommandAnswer, GuestConsole } from "./guest-console.js";

export interface BootGuestOptions {
  readonly files: GuestFiles;
  /** Sockets and output go here; its path must be short. */
  readonly directory: string;
  /** The guest works on the first one and leaves the others alone. Without any it only answers commands. */
  readonly disks: readonly TestDisk[];
  /** Tells the files of several guests in one directory apart. Default: `guest`. */
  readonly name?: string;
  /** Default: `tcg`. See `chooseAccelerator`. */
  readonly accelerator?: "tcg" | "kvm";
  /** Default: true. Otherwise it leaves all disks alone. */
  readonly worksOnDisk?: boolean;
  /** Seconds between two steps of the guest's work. Default: 0.1. */
  readonly tickSeconds?: number;
  readonly extraQmp?: number;
  readonly extraArguments?: readonly string[];
  /** Default: true. Otherwise `bootGuest` returns before the guest is up. */
  readonly waitUntilReady?: boolean;
}

/** Ends a boot that hangs. */
const bootTimeoutMs = 120_000;
const commandTimeoutMs = 120_000;

/** A Linux guest that works on its disk like a small server, and obeys commands over its serial port. */
export class GuestVm implements AsyncDisposable {
  readonly vm: TestVm;
  readonly #console: GuestConsole;

  constructor(vm: TestVm, console: GuestConsole) {
    this.vm = vm;
    this.#console = console;
  }

  /** Everything that the guest has printed, line by line, over all its starts. */
  get lines(): readonly string[] {
    return this.#console.lines;
  }

  /** The socket for the agent. */
  get qmpPath(): string {
    return this.vm.qmpPath;
  }

  /** Calls `listener` with each line from now on; the result ends that. */
  onLine(listener: (line: string) => void): () => void {
    return this.#console.onLine(listener);
  }

  /** The first line that matches, of those after the first `after` (default 0: all there are). Rejects in time. */
  async waitFor(pattern: RegExp, options: { timeoutMs: number; after?: number }): Promise<RegExpExecArray> {
    return this.#console.waitFor(pattern, options);
  }

  /** Waits until the guest has done `steps` more steps, so that its disk has changed. */
  async work(
    steps: number,
    options: { timeoutMs: number } = { timeoutMs: commandTimeoutMs },
  ): Promise<number> {
    const start = this.lines.length;
    let last = 0;
    for (let step = 0, after = start; step < steps; step++) {
      last = Number((await this.waitFor(/^WORK (\d+) /, { ...options, after }))[1]);
      after = this.lines.findIndex((line, index) => index >= after && line.startsWith(`WORK ${last} `)) + 1;
    }
    return last;
  }

  /**
   * Runs a command in the guest: `pause` and `resume` for its work, `sync`, `sums` (digests of all files on its
   * disk), or any shell command. A failure is an exit status, not an exception.
   */
  async command(
    text: string,
    options: { timeoutMs: number } = { timeoutMs: commandTimeoutMs },
  ): Promise<CommandAnswer> {
    return this.#console.command(text, options);
  }

  /** Digests of all files on the guest's disk, by path. The work should be paused. */
  async sums(): Promise<Map<string, string>> {
    const { lines } = await this.command("sums");
    return new Map(lines.map((line) => [line.slice(66), line.slice(0, 64)]));
  }

  /** Shuts the guest down cleanly; its file system is unmounted and QEMU has ended. */
  async poweroff(): Promise<void> {
    await this.command("poweroff");
    await this.vm.waitForEnd();
  }

  /** Starts it again after its end, with the same disks and sockets. */
  async restart(): Promise<void> {
    const after = this.lines.length;
    await this.vm.restart();
    await this.waitFor(/^READY /, { timeoutMs: bootTimeoutMs, after });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.vm[Symbol.asyncDispose]();
    this.#console.close();
  }
}

export async function bootGuest(options: BootGuestOptions): Promise<GuestVm> {
  const name = options.name ?? "guest";
  const serialPath = join(options.directory, `${name}.serial`);
  const console = await GuestConsole.listen(serialPath);
  try {
    const vm = await TestVm.start({
      directory: options.directory,
      name,
      disks: options.disks,
      memoryMib: 128,
      serialPath,
      accelerator: options.accelerator ?? "tcg",
      boot: { ...options.files, append: kernelArguments(options) },
      extraQmp: options.extraQmp ?? 0,
      extraArguments: options.extraArguments ?? [],
    });
    const guest = new GuestVm(vm, console);
    if (options.waitUntilReady !== false) await waitUntilReady(guest);
    return guest;
  } catch (error) {
    console.close();
    throw error;
  }
}

async function waitUntilReady(guest: GuestVm): Promise<void> {
  try {
    await guest.waitFor(/^READY /, { timeoutMs: bootTimeoutMs });
  } catch (error) {
    await guest[Symbol.asyncDispose]();
    throw error;
  }
}

/** Linux names virtio-blk disks vda, vdb, … and all others sda, sdb, …, each in the order found. */
function kernelArguments({ disks, tickSeconds, worksOnDisk = true }: BootGuestOptions): string {
  const first = worksOnDisk ? disks[0] : undefined;
  const device = first === undefined ? "none" : (first.bus ?? "virtio-blk") === "virtio-blk" ? "vda" : "sda";
  return `console=ttyS0 quiet panic=-1 data=${device} tick=${tickSeconds ?? 0.1}`;
}
