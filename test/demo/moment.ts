import { setTimeout as delay } from "node:timers/promises";
import type { TestVm } from "../support/vm.js";

export interface KnownMoment {
  /** Runs while the guest stands still. */
  readonly copyDisks: () => Promise<void>;
  readonly backUp: () => Promise<void>;
  /** Runs when the guest runs again, and the backup reads. */
  readonly meanwhile: () => Promise<void>;
}

/**
 * Runs a backup of which the moment is known: the guest's CPUs stand still from before `copyDisks` until the backup
 * has its block snapshot, and run again while the backup reads. Stopping makes QEMU write out its caches, so that
 * the image files can be copied.
 */
export async function backUpAtKnownMoment(
  vm: TestVm,
  { copyDisks, backUp, meanwhile }: KnownMoment,
): Promise<void> {
  await vm.qmp("stop");
  let backup;
  try {
    await copyDisks();
    backup = backUp();
    await waitForExports(vm, backup);
  } finally {
    await vm.qmp("cont");
  }
  await Promise.all([backup, meanwhile()]);
}

/** A backup exports its disks once all of their snapshots are there. */
async function waitForExports(vm: TestVm, backup: Promise<void>): Promise<void> {
  const ended = new AbortController();
  const end = (): void => ended.abort();
  backup.then(end, end);
  while (!ended.signal.aborted && (await vm.blockState()).exports.length === 0) await delay(5);
}
