import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { bootArguments } from "../../model/boot-arguments.js";
import type { BootSign } from "../../model/boot-test.js";
import { signWords } from "../../model/boot-test.js";
import type { DomainConfig } from "../../model/config.js";
import type { BootDisk, Booted, BootMachines, BootOrder } from "../../ports/boot-machines.js";
import type { Clock } from "../../ports/clock.js";
import { FleeceError } from "../../shared/errors.js";
import { formatDuration } from "../../shared/units.js";
import { GuestAgent } from "../guest-agent/guest-agent.js";
import { findQemu } from "../machine/machine-process.js";
import { createImage } from "../qemu-tools.js";
import { configOf } from "../reach-domain.js";
import { makeRuntimeDirectory, processDirectoryPath } from "../runtime-directory.js";
import { workingAccelerator } from "./accelerator.js";
import { BootProcess } from "./boot-process.js";

/** An agent that runs answers in milliseconds; until then nobody reads what is sent to it. */
const PING_TIMEOUT_MS = 2_000;
const PING_PAUSE_MS = 500;
/** Between two lines that are told on the way. */
const TELL_MS = 1_000;
/** What of the console an error tells. */
const LAST_LINES = { lines: 8, characters: 800 };

export class QemuBootMachines implements BootMachines {
  readonly #domains: readonly DomainConfig[];
  readonly #clock: Clock;
  readonly #runtimeRoot: string | undefined;
  readonly #accelerators = new Map<string, Promise<"kvm" | "tcg">>();

  constructor(parts: {
    readonly domains: readonly DomainConfig[];
    readonly clock: Clock;
    readonly runtimeRoot?: string | undefined;
  }) {
    this.#domains = parts.domains;
    this.#clock = parts.clock;
    this.#runtimeRoot = parts.runtimeRoot;
  }

  async running(domain: string): ReturnType<BootMachines["running"]> {
    const { qmp } = configOf(this.#domains, domain);
    return qmp === undefined ? undefined : findQemu(qmp);
  }

  async boot(order: BootOrder): Promise<Booted> {
    const { settings, directory, signal } = order;
    const accelerator = await this.#accelerator(order);
    const sockets = processDirectoryPath(this.#runtimeRoot);
    const agentSocket = settings.sign.kind === "console" ? undefined : join(sockets, "agent.sock");
    const disks = order.disks.map(({ address, ...disk }) => ({ target: address.target, ...disk }));
    const { cwd, copies } = order;
    const { memoryBytes } = settings;
    const plan = { cwd, disks, copies, memoryBytes, accelerator, agentSocket };
    const command = bootArguments(order.launch, plan);
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await makeRuntimeDirectory(sockets);
    try {
      for (const disk of order.disks) await createOverlay(disk, signal);
      signal?.throwIfAborted();
      const startMs = this.#clock.monotonicMs();
      await using machine = await BootProcess.start(command, cwd);
      await this.#waitForSign(machine, order, agentSocket);
      return { accelerator, durationMs: Math.round(this.#clock.monotonicMs() - startMs) };
    } finally {
      await rm(sockets, { recursive: true, force: true });
    }
  }

  /** Asked once: what works here does so as long as this process lives. */
  async #accelerator({ settings, launch }: BootOrder): Promise<"kvm" | "tcg"> {
    if (settings.accelerator !== "auto") return settings.accelerator;
    const [program = ""] = launch;
    const known = this.#accelerators.get(program) ?? workingAccelerator(program);
    this.#accelerators.set(program, known);
    return known;
  }

  async #waitForSign(machine: BootProcess, order: BootOrder, agentSocket: string | undefined): Promise<void> {
    const { settings, signal } = order;
    const over = new AbortController();
    const stop = signal === undefined ? over.signal : AbortSignal.any([signal, over.signal]);
    const isBack =
      agentSocket === undefined
        ? shownSign(machine, settings.sign)
        : this.#answeredPing(agentSocket, stop).then(() => true as const);
    const isLate = this.#clock
      .sleep(settings.timeoutMs, stop)
      .then(() => `did not come within ${formatDuration(settings.timeoutMs)}`);
    const isGone = machine.ended.then((how) => `had not come when ${how}`);
    const told = this.#tellConsole(machine, order, stop);
    try {
      const first = await Promise.race([isBack, isLate, isGone]);
      signal?.throwIfAborted();
      if (first !== true) throw bootFailed(settings.sign, first, machine.console);
    } finally {
      over.abort();
      await Promise.allSettled([told, isLate, ...(agentSocket === undefined ? [] : [isBack])]);
    }
  }

  async #answeredPing(socketPath: string, signal: AbortSignal): Promise<void> {
    for (;;) {
      try {
        // Connecting asks the agent for a random number; only a program that runs in the guest can answer with it.
        await using _agent = await GuestAgent.connect(socketPath, { timeoutMs: PING_TIMEOUT_MS, signal });
        return;
      } catch {
        await this.#clock.sleep(PING_PAUSE_MS, signal);
      }
    }
  }

  async #tellConsole(machine: BootProcess, { onConsole }: BootOrder, signal: AbortSignal): Promise<void> {
    let told = "";
    while (onConsole !== undefined && !signal.aborted) {
      const line = linesOf(machine.console).at(-1) ?? "";
      if (line !== told) onConsole(line);
      told = line;
      await this.#clock.sleep(TELL_MS, signal).catch(() => undefined);
    }
  }
}

async function createOverlay({ address, overlay: path }: BootDisk, signal?: AbortSignal): Promise<void> {
  const { exportName, socketPath, sizeBytes } = address;
  const backing = `nbd+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(socketPath)}`;
  await createImage({ path, format: "qcow2", sizeBytes, backing, backingFormat: "raw", signal });
}

function shownSign(machine: BootProcess, sign: BootSign): Promise<true> {
  return new Promise((resolve) => {
    const look = (): void => {
      if (sign.kind === "console" && sign.pattern.test(machine.console)) resolve(true);
    };
    machine.onOutput = look;
    look();
  });
}

function linesOf(text: string): string[] {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
}

/** Of the registers and traces that follow on a panic nobody learns; of what came before it, perhaps. */
function lastWords(console: string): string {
  const lines = linesOf(console);
  const panic = lines.findLastIndex((line) => /panic/i.test(line));
  const end = panic < 0 ? lines.length : panic + 1;
  return lines
    .slice(Math.max(0, end - LAST_LINES.lines), end)
    .join(" | ")
    .slice(-LAST_LINES.characters);
}

function bootFailed(sign: BootSign, how: string, console: string): FleeceError {
  const last = lastWords(console);
  const said = last === "" ? "its serial console has said nothing" : `its serial console said last: ${last}`;
  return new FleeceError("BOOT_FAILED", `The guest did not come up: ${signWords(sign)} ${how}; ${said}`, {
    facts: { console: last },
  });
}
