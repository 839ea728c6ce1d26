/** A QEMU as a process of the host; a later one with the same pid has another start time, in clock ticks since boot. */
export interface MachineProcess {
  readonly pid: number;
  readonly startTicks: number;
  readonly arguments: readonly string[];
  /** The file that it runs. */
  readonly program: string;
  readonly cwd: string;
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  /** `NAME=value`; empty if this user may not read it. */
  readonly environment: readonly string[];
}

/** How a QEMU is started: beside its arguments what it has from the one that it takes the place of, if there is one. */
export interface MachineStart {
  readonly domain: string;
  /** Without CPUs that run: see `rewriteArguments`. */
  readonly arguments: readonly string[];
  readonly like?: MachineProcess | undefined;
  /** Path of the image to load. */
  readonly memory?: string | undefined;
}
