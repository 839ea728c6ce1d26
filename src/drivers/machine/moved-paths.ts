import { link, rename, rm, unlink } from "node:fs/promises";
import type { MovedPath } from "../../model/machine-ends.js";
import { errnoOf, fileError } from "../../shared/errors.js";

/**
 * Two QEMUs of the same arguments want the same sockets. Renaming a bound socket changes nothing for who listens or is connected; but a
 * QEMU removes whatever has its path when it starts to listen, and again when it ends. So the old one's get other names before the new
 * one starts, and the new one's have a second name while the old one ends. What comes after the start of the new one is idempotent, since it
 * may be killed at any point and is then done again.
 */
export async function setAside(moved: readonly MovedPath[]): Promise<void> {
  for (const { path, aside } of moved) {
    await ignoring(["ENOENT"], path, () => rename(path, aside));
  }
}

/** The old QEMU has its paths again; the new one has ended. */
export async function takeBack(moved: readonly MovedPath[]): Promise<void> {
  for (const { path, aside, keep } of moved) {
    await ignoring(["ENOENT"], path, () => rename(aside, path));
    await rm(keep, { force: true });
  }
}

/** Before the old QEMU ends. */
export async function keepNew(moved: readonly MovedPath[]): Promise<void> {
  for (const { path, keep } of moved) {
    await ignoring(["ENOENT", "EEXIST"], path, () => link(path, keep));
  }
}

/** After the old QEMU has ended. */
export async function settleNew(moved: readonly MovedPath[]): Promise<void> {
  for (const { path, aside, keep } of moved) {
    await ignoring(["ENOENT"], path, () => rename(keep, path));
    // Two names of one file stay both (rename(2)).
    await rm(keep, { force: true });
    await ignoring(["ENOENT"], aside, () => unlink(aside));
  }
}

async function ignoring(
  errnos: readonly string[],
  path: string,
  action: () => Promise<unknown>,
): Promise<void> {
  try {
    await action();
  } catch (error) {
    if (errnos.includes(errnoOf(error) ?? "")) return;
    throw fileError(error, "move", path);
  }
}
