import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { DomainConfig } from "../../model/config.js";
import type { MovedPath } from "../../model/machine-ends.js";
import type { Machine, MachineProcess, Machines, MachineStart } from "../../ports/machines.js";
import { connectQmp, isQmpError, type QmpSession } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";
import { endProcess } from "../end-daemon.js";
import { mapQmpError } from "../qmp-errors.js";
import { startMachine } from "./launcher.js";
import { findByArguments, listenerOf } from "./machine-process.js";
import { keepNew, setAside, settleNew } from "./moved-paths.js";
import { RunningMachine } from "./running-machine.js";
import { checkImage, checkMemory, createOverlay, fileExists, removeFile } from "./revert-files.js";

/** How long an ending QEMU may write back what it holds. */
const END_TIMEOUT_MS = 60_000;

/** The QEMU processes of this host. */
export class QemuMachines implements Machines {
  readonly setAside = setAside;
  readonly checkImage = checkImage;
  readonly checkMemory = checkMemory;
  readonly exists = fileExists;
  readonly createOverlay = createOverlay;
  readonly removeFile = removeFile;
  readonly #domains: ReadonlyMap<string, DomainConfig>;
  readonly #stateDir: string;

  constructor({ domains, stateDir }: { domains: readonly DomainConfig[]; stateDir: string }) {
    this.#domains = new Map(domains.map((domain) => [domain.name, domain]));
    this.#stateDir = stateDir;
  }

  settings(name: string): { readonly launch?: readonly string[]; readonly monitor?: string } {
    const { launch, qmp } = this.#domain(name);
    return { ...(launch === undefined ? {} : { launch }), ...(qmp === undefined ? {} : { monitor: qmp }) };
  }

  async open(name: string, signal?: AbortSignal): Promise<Machine | undefined> {
    const { qmp: socketPath } = this.#domain(name);
    const qmp = socketPath === undefined ? undefined : await this.#connect(name, socketPath, signal);
    if (socketPath === undefined || qmp === undefined) return undefined;
    const process = await listenerOf(socketPath);
    if (process !== undefined) return new RunningMachine({ domain: name, process, qmp });
    await qmp.close();
    throw new FleeceError(
      "UNSUPPORTED",
      `The QEMU process of domain ${name} cannot be found: the monitor ${socketPath} must be its own, and this user must be allowed to look at it`,
      { facts: { domain: name } },
    );
  }

  async find(name: string, args: readonly string[]): Promise<Machine | undefined> {
    const { qmp: socketPath } = this.#domain(name);
    const [process] = await findByArguments(args);
    if (process === undefined || socketPath === undefined) return undefined;
    const qmp = await this.#connect(name, socketPath);
    return qmp === undefined ? undefined : new RunningMachine({ domain: name, process, qmp });
  }

  async start(start: MachineStart, signal?: AbortSignal): Promise<Machine> {
    const { qmp: monitor = "" } = this.#domain(start.domain);
    const directory = join(this.#stateDir, "machines");
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const logPath = join(directory, `${start.domain}.log`);
    try {
      return new RunningMachine({
        domain: start.domain,
        ...(await startMachine(start, { monitor, logPath, signal })),
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

  /** Undefined if nobody listens. */
  async #connect(name: string, socketPath: string, signal?: AbortSignal): Promise<QmpSession | undefined> {
    try {
      return await connectQmp({ socketPath, signal });
    } catch (error) {
      if (isQmpError(error, "QMP_SOCKET_ABSENT", "QMP_REFUSED")) return undefined;
      throw mapQmpError(error, `Domain ${name}`);
    }
  }

  #domain(name: string): DomainConfig {
    const config = this.#domains.get(name);
    if (config !== undefined) return config;
    throw new FleeceError("DOMAIN_NOT_FOUND", `The configuration has no domain ${name}`);
  }
}
