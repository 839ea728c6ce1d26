import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { DomainConfig } from "../../model/config.js";
import type { MovedPath } from "../../model/machine-ends.js";
import type { MachineProcess, MachineStart } from "../../model/machine-start.js";
import type { Machine, Machines } from "../../ports/machines.js";
import { FleeceError } from "../../shared/errors.js";
import { endProcess } from "../end-daemon.js";
import { USUAL_IO_PRIORITY } from "../io-priority.js";
import { mapQmpError } from "../qmp-errors.js";
import { configOf, reachDomain } from "../reach-domain.js";
import { startMachine } from "./launcher.js";
import { findByArguments, findQemu } from "./machine-process.js";
import { keepNew, setAside, settleNew } from "./moved-paths.js";
import { RunningMachine } from "./running-machine.js";

/** How long an ending QEMU may write back what it holds. */
const END_TIMEOUT_MS = 60_000;

/** The QEMU processes of this host. */
export class QemuMachines implements Machines {
  readonly setAside = setAside;
  readonly #domains: readonly DomainConfig[];
  readonly #stateDir: string;
  /** Of the commands that start QEMU. */
  readonly #prefix: readonly string[];

  constructor(options: {
    readonly domains: readonly DomainConfig[];
    readonly stateDir: string;
    /** Whether this process has lowered its own, which is not meant for guests. */
    readonly lowersIoPriority?: boolean;
  }) {
    this.#domains = options.domains;
    this.#stateDir = options.stateDir;
    this.#prefix = options.lowersIoPriority === true ? USUAL_IO_PRIORITY : [];
  }

  settings(name: string): { readonly launch?: readonly string[]; readonly monitor?: string } {
    const { launch, qmp } = configOf(this.#domains, name);
    return { ...(launch === undefined ? {} : { launch }), ...(qmp === undefined ? {} : { monitor: qmp }) };
  }

  async open(name: string, signal?: AbortSignal): Promise<Machine | undefined> {
    const reached = await reachDomain(configOf(this.#domains, name), signal);
    if (!reached.running) return undefined;
    const { qmp, qmpSocketPath } = reached;
    const process = await findQemu(qmpSocketPath);
    if (process !== undefined) return new RunningMachine({ domain: name, process, qmp });
    await qmp.close();
    throw new FleeceError(
      "UNSUPPORTED",
      `The QEMU process of domain ${name} cannot be found: the monitor ${qmpSocketPath} must be its own, and this user must be allowed to look at it`,
      { facts: { domain: name } },
    );
  }

  async find(name: string, args: readonly string[]): Promise<Machine | undefined> {
    const [process] = await findByArguments(args);
    if (process === undefined) return undefined;
    const reached = await reachDomain(configOf(this.#domains, name));
    return reached.running ? new RunningMachine({ domain: name, process, qmp: reached.qmp }) : undefined;
  }

  async start(start: MachineStart, signal?: AbortSignal): Promise<Machine> {
    const { qmp: monitor = "" } = configOf(this.#domains, start.domain);
    const directory = join(this.#stateDir, "machines");
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const logPath = join(directory, `${start.domain}.log`);
    try {
      return new RunningMachine({
        domain: start.domain,
        ...(await startMachine(start, { monitor, logPath, signal, prefix: this.#prefix })),
      });
    } catch (error) {
      throw mapQmpError(error, `The new QEMU of domain ${start.domain}`);
    }
  }

  async end(process: Pick<MachineProcess, "pid" | "startTicks">, moved: readonly MovedPath[]): Promise<void> {
    await keepNew(moved);
    await endProcess(process, { termTimeoutMs: END_TIMEOUT_MS });
    await settleNew(moved);
  }
}
