import { join } from "node:path";
import type { TestDisk } from "../support/vm-arguments.js";
import { TestVm } from "../support/vm.js";
import { buildGuest, type GuestFiles } from "./build-guest.js";
import { GuestConsole } from "./guest-console.js";

export interface CounterGuestOptions {
  /** Sockets and output go here; its path must be short. */
  readonly directory: string;
  /** The guest counts on all of them that are writable. On virtio-blk, or all on other buses. */
  readonly disks: readonly TestDisk[];
  /** Tells the files of several guests in one directory apart. Default: `counter`. */
  readonly name?: string;
  /** MiB. Default: 96. */
  readonly memoryMib?: number;
  /** MiB of random content in the guest's RAM, for `check`. Default: 4. */
  readonly ballastMib?: number;
  /** Seconds between two turns of the counter. Default: 0.05. */
  readonly tickSeconds?: number;
  readonly extraQmp?: number;
  readonly extraArguments?: readonly string[];
}

/** Ends a wait that hangs; a boot takes some seconds. */
const waitTimeoutMs = 120_000;

export async function buildCounterGuest(): Promise<GuestFiles> {
  return buildGuest(undefined, undefined, "counter-init.sh");
}

/**
 * A Linux guest under TCG that counts in RAM and on all its disks, and says when they disagree: then what it was
 * given as RAM and as disks is not of one moment.
 */
export class CounterGuest implements AsyncDisposable {
  readonly vm: TestVm;
  readonly counter: Counter;

  private constructor(vm: TestVm, counter: Counter) {
    this.vm = vm;
    this.counter = counter;
  }

  /** Resolves when the guest counts. */
  static async boot(options: CounterGuestOptions): Promise<CounterGuest> {
    const guest = await CounterGuest.start(options);
    try {
      await guest.counter.waitTurns(1);
      return guest;
    } catch (error) {
      await guest[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Resolves when QEMU answers; with `-incoming` in `extraArguments` the guest does not boot, but goes on. */
  static async start(options: CounterGuestOptions): Promise<CounterGuest> {
    const name = options.name ?? "counter";
    const counter = new Counter(await GuestConsole.listen(join(options.directory, `${name}.serial`)));
    try {
      const vm = await TestVm.start({
        directory: options.directory,
        name,
        disks: options.disks,
        memoryMib: options.memoryMib ?? 96,
        serialPath: counter.console.path,
        boot: { ...(await buildCounterGuest()), append: kernelArguments(options) },
        extraQmp: options.extraQmp ?? 0,
        extraArguments: options.extraArguments ?? [],
      });
      return new CounterGuest(vm, counter);
    } catch (error) {
      counter.close();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.vm[Symbol.asyncDispose]();
    this.counter.close();
  }
}

/** What the counter guest says on its serial line: of the QEMU that connected last, if there were several. */
export class Counter {
  readonly console: GuestConsole;

  constructor(console: GuestConsole) {
    this.console = console;
  }

  /** The last number that the guest printed; 0 before the first. */
  count(): number {
    return this.#lines().reduce((last, line) => Number(/^T (\d+)$/.exec(line)?.[1] ?? last), 0);
  }

  /** Resolves when the guest has counted to `atLeast`. */
  async waitCount(atLeast: number): Promise<void> {
    const signal = AbortSignal.timeout(waitTimeoutMs);
    while (this.count() < atLeast) {
      if (signal.aborted)
        throw new Error(`Expected the guest to count to ${atLeast}, it is at ${this.count()}`);
      await this.#nextTurn();
    }
  }

  /** Resolves when the guest has counted `turns` times from now: it runs. */
  async waitTurns(turns: number): Promise<void> {
    for (let turn = 0; turn < turns; turn++) await this.#nextTurn();
  }

  /** Whether the guest's RAM still holds its ballast: `ok <digest>` or `BAD <digest> expected <digest>`. */
  async check(): Promise<string> {
    const { lines } = await this.console.command("CHECK");
    return lines.join("\n");
  }

  /** Disks that did not hold the number that RAM did, as the guest printed it. */
  mismatches(): readonly string[] {
    return this.#lines().filter((line) => line.startsWith("MISMATCH "));
  }

  close(): void {
    this.console.close();
  }

  #lines(): readonly string[] {
    return this.console.lines.slice(this.console.connectionStart);
  }

  async #nextTurn(): Promise<void> {
    await this.console.waitFor(/^T \d+$/, { timeoutMs: waitTimeoutMs, after: this.console.lines.length });
  }
}

/** Linux names virtio-blk disks vda, vdb, … and all others sda, sdb, …, each in the order found. */
function kernelArguments({ disks, tickSeconds, ballastMib }: CounterGuestOptions): string {
  const names = disks.flatMap((disk, index) => {
    if (disk.readOnly === true) return [];
    return `${(disk.bus ?? "virtio-blk") === "virtio-blk" ? "vd" : "sd"}${"abcdefgh".charAt(index)}`;
  });
  const settings = `disks=${names.join(",")} tick=${tickSeconds ?? 0.05} ballast=${ballastMib ?? 4}`;
  return `console=ttyS0 quiet panic=-1 ${settings}`;
}
