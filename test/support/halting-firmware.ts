import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** In the folder that git ignores. */
const folder = fileURLToPath(new URL("../../var/guest/", import.meta.url));
/** The smallest firmware that QEMU takes for a PC. */
const SIZE_BYTES = 64 * 1024;
/** Where the CPU begins: `cli; halt: hlt; jmp halt`. */
const RESET_VECTOR = SIZE_BYTES - 16;
const CODE = "faf4ebfd";

let made: Promise<string> | undefined;

/**
 * A firmware that does nothing, for guests that nobody asks anything of: the distribution's would emulate some tenths of a
 * second of searching for a disk to boot from, at each start.
 */
export async function haltingFirmware(): Promise<string> {
  made ??= make();
  return made;
}

async function make(): Promise<string> {
  const firmware = Buffer.alloc(SIZE_BYTES);
  firmware.write(CODE, RESET_VECTOR, "hex");
  const path = join(folder, "halt.rom");
  // Whole at any time, for others start a QEMU with it meanwhile.
  const draft = `${path}.${process.pid}`;
  await mkdir(folder, { recursive: true });
  await writeFile(draft, firmware);
  await rename(draft, path);
  return path;
}
