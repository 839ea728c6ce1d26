import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import type { GuestFiles } from "./build-guest.js";
import { bootGuest } from "./guest-vm.js";

/** With KVM the guest prints its first line in well under a second. */
const probeTimeoutMs = 5_000;

/**
 * `kvm` if it really runs a guest here, else `tcg`. Inside another virtual machine /dev/kvm may open, and QEMU may
 * call it enabled, while the guest never gets anywhere: only booting tells.
 */
export async function chooseAccelerator(files: GuestFiles): Promise<"kvm" | "tcg"> {
  try {
    await access("/dev/kvm", constants.R_OK | constants.W_OK);
    await using directory = await TemporaryDirectory.create();
    await using guest = await bootGuest({
      files,
      directory: directory.path,
      disks: [],
      accelerator: "kvm",
      waitUntilReady: false,
    });
    await guest.waitFor(/^HELLO /, { timeoutMs: probeTimeoutMs });
    return "kvm";
  } catch {
    return "tcg";
  }
}
