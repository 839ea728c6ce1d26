import type { BootSettings } from "../model/boot-test.js";
import type { ExportAddress } from "../model/snapshot-plan.js";

/** A disk of a backup, and what the machine's arguments may call it. */
export interface BootDisk {
  /** Read alone: what the guest writes goes to an overlay. */
  readonly address: ExportAddress;
  /** Absolute paths. */
  readonly files: readonly string[];
  /** To be made there. */
  readonly overlay: string;
}

export interface BootOrder {
  readonly settings: BootSettings;
  /** Program and arguments, as the domain has them. */
  readonly launch: readonly string[];
  /** What relative paths in them count from. */
  readonly cwd: string;
  readonly disks: readonly BootDisk[];
  /** Copies of other files that the machine writes to, by the path of the original. */
  readonly copies: ReadonlyMap<string, string>;
  /** Of this boot alone, for what it writes; made if missing. */
  readonly directory: string;
  readonly signal: AbortSignal | undefined;
  /** The last line on the serial console, now and then. */
  readonly onConsole?: ((line: string) => void) | undefined;
}

export interface Booted {
  readonly accelerator: "kvm" | "tcg";
  readonly durationMs: number;
}

/** Throw-away machines on the disks of backups: without a network, and gone when this process is. */
export interface BootMachines {
  /** The arguments of the domain's QEMU, if it runs and may be looked at. */
  running(
    domain: string,
  ): Promise<{ readonly arguments: readonly string[]; readonly cwd: string } | undefined>;
  /**
   * Boots a machine, waits for its sign of life, and ends it. Fails with BOOT_FAILED and what its console said last, with UNSUPPORTED if
   * such a machine cannot be made of the arguments, TOOL_MISSING, or the signal's reason. Nothing runs afterwards.
   */
  boot(order: BootOrder): Promise<Booted>;
}
