import type { BootMachines } from "../../src/ports/boot-machines.js";
import type { Machines } from "../../src/ports/machines.js";

const refuse = (): Promise<never> => Promise.reject(new Error("The fake world starts and ends no QEMU"));

/** Reverts are tested with real processes: what they are about are sockets, locks and memory images. */
export const fakeMachines: Machines = {
  settings: () => ({}),
  open: () => Promise.resolve(undefined),
  find: () => Promise.resolve(undefined),
  start: refuse,
  setAside: refuse,
  end: refuse,
};

export const fakeBootMachines: BootMachines = { running: () => Promise.resolve(undefined), boot: refuse };
