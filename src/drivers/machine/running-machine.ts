import type { MachineProcess } from "../../model/machine-start.js";
import type { Machine, MachineFacts } from "../../ports/machines.js";
import { isQmpError, type QmpSession } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";
import { withQmpErrors } from "../qmp-errors.js";
import { HoldGuard } from "../running/hold-guard.js";
import { MEMORY_DESCRIPTOR } from "./launcher.js";
import { readMachineFacts } from "./machine-facts.js";

/** Loading goes at the speed of the storage; one that does not end is taken for hung after so long. */
const LOAD_TIMEOUT_MS = 30 * 60_000;

export interface RunningMachineParts {
  readonly domain: string;
  readonly process: MachineProcess;
  readonly qmp: QmpSession;
  /** Of a QEMU that we have started: see `StartedMachine`. */
  readonly obituary?: () => Promise<string | undefined>;
}

/** A QEMU over its monitor. */
export class RunningMachine implements Machine {
  readonly process: MachineProcess;
  readonly #domain: string;
  readonly #qmp: QmpSession;
  readonly #obituary: () => Promise<string | undefined>;
  #guard: HoldGuard | undefined;

  constructor({ domain, process, qmp, obituary }: RunningMachineParts) {
    this.#domain = domain;
    this.process = process;
    this.#qmp = qmp;
    this.#obituary = obituary ?? (() => Promise.resolve(undefined));
  }

  status(): Promise<"running" | "paused" | "other"> {
    return this.#guarded(async () => {
      const { status } = await this.#qmp.execute("query-status");
      if (status === "running") return "running";
      return ["paused", "prelaunch", "postmigrate"].includes(status) ? "paused" : "other";
    });
  }

  facts(): Promise<MachineFacts> {
    return this.#guarded(() => readMachineFacts(this.#qmp));
  }

  async hold(guardPath: string, signal?: AbortSignal): Promise<void> {
    if ((await this.status()) !== "running") return;
    this.#guard = await HoldGuard.start({ qmpSocketPath: guardPath, signal });
    this.#guard.begin("held");
    await this.#guarded(() => this.#qmp.execute("stop"));
  }

  async release(): Promise<void> {
    if (this.#guard === undefined) return;
    await this.continue();
    this.keepHeld();
  }

  keepHeld(): void {
    this.#guard?.end("held");
    void this.#guard?.[Symbol.asyncDispose]();
    this.#guard = undefined;
  }

  async load(signal?: AbortSignal): Promise<void> {
    try {
      await this.#qmp.execute("migrate-incoming", { uri: `fd:${MEMORY_DESCRIPTOR}` });
      await this.#untilLoaded(signal);
    } catch (error) {
      signal?.throwIfAborted();
      const last = await this.#obituary();
      const words =
        last === undefined ? (error instanceof Error ? error.message : String(error)) : `QEMU ${last}`;
      throw new FleeceError(
        "MEMORY_LOAD_FAILED",
        `The memory of domain ${this.#domain} could not be loaded: ${words}`,
        { cause: error, facts: { domain: this.#domain } },
      );
    }
  }

  continue(): Promise<void> {
    return this.#guarded(async () => {
      await this.#qmp.execute("cont");
    });
  }

  /** QEMU 10.0 does so only when the guest is continued. Before that there is no such command, and no need. */
  activateImages(): Promise<void> {
    return this.#guarded(async () => {
      try {
        await this.#qmp.execute("blockdev-set-active", { active: true });
      } catch (error) {
        if (!isQmpError(error) || error.qmpClass !== "CommandNotFound") throw error;
      }
    });
  }

  async close(): Promise<void> {
    // A guard that still holds acts now, as if we were dead.
    void this.#guard?.[Symbol.asyncDispose]();
    this.#guard = undefined;
    await this.#qmp.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Asked for rather than waited for: an event could be lost between two QEMU versions' ideas of when it is due. */
  async #untilLoaded(signal: AbortSignal | undefined): Promise<void> {
    const deadline = AbortSignal.timeout(LOAD_TIMEOUT_MS);
    const either = signal === undefined ? deadline : AbortSignal.any([signal, deadline]);
    for (let waitMs = 5; ; waitMs = Math.min(100, waitMs * 2)) {
      const { status } = await this.#qmp.execute("query-status", undefined, { signal: either });
      if (status !== "inmigrate") return;
      const { status: migration = "" } = await this.#qmp.execute("query-migrate");
      if (migration === "failed") throw new FleeceError("MEMORY_LOAD_FAILED", "its migration failed");
      await new Promise((resolve) => setTimeout(resolve, waitMs));
      either.throwIfAborted();
    }
  }

  #guarded<T>(action: () => Promise<T>): Promise<T> {
    return withQmpErrors(`Domain ${this.#domain}`, async () => {
      try {
        return await action();
      } catch (error) {
        if (!isQmpError(error, "QMP_DISCONNECTED")) throw error;
        const last = await this.#obituary();
        if (last === undefined) throw error;
        throw new FleeceError("QEMU_FAILED", `The new QEMU of domain ${this.#domain} ${last}`, {
          cause: error,
        });
      }
    });
  }
}
