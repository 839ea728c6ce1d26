import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { BootProcess } from "./boot-process.js";

/** By KVM the firmware's first words come within a tenth of a second. */
const PROBE_TIMEOUT_MS = 5_000;

/** Where x86 firmware (SeaBIOS, OVMF) prints what it does. */
const FIRMWARE_PORT = "0x402";

/**
 * `kvm` if a guest really runs by it. Inside another virtual machine /dev/kvm may open, and QEMU may call it enabled, while the guest
 * never gets anywhere; so on x86 the firmware is given the time to say a word.
 */
export async function workingAccelerator(program: string): Promise<"kvm" | "tcg"> {
  try {
    await access("/dev/kvm", constants.R_OK | constants.W_OK);
  } catch {
    return "tcg";
  }
  if (!["x64", "ia32"].includes(process.arch)) return "kvm";
  const machine = ["-accel", "kvm", "-machine", "pc", "-nodefaults", "-no-user-config", "-display", "none"];
  const words = [
    "-chardev",
    "stdio,id=words,signal=off",
    "-device",
    `isa-debugcon,iobase=${FIRMWARE_PORT},chardev=words`,
  ];
  await using probe = await BootProcess.start([program, ...machine, ...words], "/");
  const spoken = new Promise<"kvm">((resolve) => (probe.onOutput = () => resolve("kvm")));
  const over = new AbortController();
  const silent = Promise.race([probe.ended, delay(PROBE_TIMEOUT_MS, undefined, { signal: over.signal })]);
  const found = await Promise.race([
    spoken,
    silent.then(
      () => "tcg" as const,
      () => "tcg" as const,
    ),
  ]);
  over.abort();
  return found;
}
