import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { BootProcess } from "./boot-process.js";

/** By KVM the firmware is through in a second or two. */
const PROBE_TIMEOUT_MS = 10_000;

/** Where QEMU's firmware for PCs (SeaBIOS) prints what it does, and what it prints last where there is nothing to boot. */
const FIRMWARE_PORT = "0x402";
const LAST_WORDS = "No bootable device";

/**
 * `kvm` if a guest really runs by it. Inside another virtual machine /dev/kvm may open, and QEMU may call it enabled, while the guest
 * never gets far: its firmware may begin, and stop at the first boot sector. So on x86 the firmware of a machine without disks must come to its end.
 */
export async function workingAccelerator(program: string): Promise<"kvm" | "tcg"> {
  try {
    await access("/dev/kvm", constants.R_OK | constants.W_OK);
  } catch {
    return "tcg";
  }
  if (!["x64", "ia32"].includes(process.arch)) return "kvm";
  const machine = ["-accel", "kvm", "-machine", "pc", "-nodefaults", "-no-user-config", "-display", "none"];
  const port = `isa-debugcon,iobase=${FIRMWARE_PORT},chardev=words`;
  const words = ["-chardev", "stdio,id=words,signal=off", "-device", port];
  await using probe = await BootProcess.start([program, ...machine, ...words], "/");
  const spoken = new Promise<"kvm">((resolve) => {
    probe.onOutput = () => {
      if (probe.console.includes(LAST_WORDS)) resolve("kvm");
    };
  });
  const over = new AbortController();
  const silent = delay(PROBE_TIMEOUT_MS, undefined, { signal: over.signal }).catch(() => undefined);
  const given = Promise.race([probe.ended, silent]).then(() => "tcg" as const);
  const found = await Promise.race([spoken, given]);
  over.abort();
  return found;
}
