import type { SnapshotMachine } from "../model/domain-snapshot.js";
import type { MovedPath } from "../model/machine-ends.js";
import type { MachineProcess, MachineStart } from "../model/machine-start.js";

/** What must be the same for a memory image to fit. */
export type MachineFacts = Omit<SnapshotMachine, "arguments">;

/** A QEMU with its monitor. The monitor serves one client at a time, so let go of other drivers first. */
export interface Machine extends AsyncDisposable {
  readonly process: MachineProcess;
  /** Its CPUs may run. `other`: it cannot be continued (it panicked, or its storage failed). */
  status(): Promise<"running" | "paused" | "other">;
  facts(): Promise<MachineFacts>;
  /**
   * Stops the CPUs. If we die before `release` or `keepHeld`, a guard continues them, over the monitor's socket at `guardPath`.
   * Does nothing to a guest that does not run.
   */
  hold(guardPath: string, signal?: AbortSignal): Promise<void>;
  /** Continues a guest that `hold` has stopped. */
  release(): Promise<void>;
  /** The guard is not needed any more: the guest stays as it is. */
  keepHeld(): void;
  /** Of a QEMU that waits for it. Fails with MEMORY_LOAD_FAILED and QEMU's words; it has ended then. */
  load(signal?: AbortSignal): Promise<void>;
  continue(): Promise<void>;
  /**
   * For a guest that stays paused after `load`, when nobody else has its images open any more: before that nobody can work on its
   * disks. Idempotent.
   */
  activateImages(): Promise<void>;
  /** Lets go of the monitor; QEMU goes on. */
  close(): Promise<void>;
}

/** The QEMU processes of domains. Errors are FleeceErrors. */
export interface Machines {
  /** `launch` of the domain, if the configuration has it, and the socket that it must listen on. */
  settings(domain: string): { readonly launch?: readonly string[]; readonly monitor?: string };
  /** The QEMU of a running domain. Undefined if nobody listens on its monitor; UNSUPPORTED if its process cannot be looked at. */
  open(domain: string, signal?: AbortSignal): Promise<Machine | undefined>;
  /** A QEMU that was started with these arguments, if it lives. */
  find(domain: string, args: readonly string[]): Promise<Machine | undefined>;
  /** Starts a QEMU that outlives us. Fails with QEMU_FAILED and its words; then it has ended. */
  start(start: MachineStart, signal?: AbortSignal): Promise<Machine>;
  /** Takes the old QEMU's sockets out of the new one's way, before that starts; connections and listening go on. */
  setAside(moved: readonly MovedPath[]): Promise<void>;
  /** Ends a QEMU as if by `quit`, and puts the paths in the hands of its successor. Idempotent. */
  end(process: Pick<MachineProcess, "pid" | "startTicks">, moved: readonly MovedPath[]): Promise<void>;
}
