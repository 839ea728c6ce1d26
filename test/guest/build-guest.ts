import { createHash } from "node:crypto";
import { access, copyFile, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type ArchiveEntry, cpioArchive } from "./cpio.js";
import { findGuestParts, type GuestParts } from "./distribution.js";
import { collectModules } from "./kernel-modules.js";

export interface GuestFiles {
  readonly kernel: string;
  readonly initrd: string;
}

/** The cache of this project: `var/guest`, which git ignores. */
export const guestCacheFolder = fileURLToPath(new URL("../../var/guest", import.meta.url));

/** What the guest needs where the distribution's kernel does not have it built in. */
const wantedModules = [
  "virtio_pci",
  "virtio_blk",
  "virtio_scsi",
  "virtio_console",
  "sd_mod",
  "crc32c_generic",
  "ext4",
];

/**
 * The guest's kernel and first root file system. Built once per cache folder and kept until its scripts change;
 * delete the folder to get a newer kernel. Several processes may call it at once.
 */
export async function buildGuest(
  cacheFolder: string = guestCacheFolder,
  log: (line: string) => void = () => undefined,
  script: "init.sh" | "counter-init.sh" = "init.sh",
): Promise<GuestFiles> {
  const start = await readFile(new URL("start.sh", import.meta.url));
  const init = await readFile(new URL(script, import.meta.url));
  const recipe = createHash("sha256")
    .update(start)
    .update(init)
    .update(wantedModules.join())
    .digest("hex")
    .slice(0, 12);
  await mkdir(cacheFolder, { recursive: true });
  const cached = (await readdir(cacheFolder)).find((name) => name.endsWith(`_${recipe}`));
  if (cached !== undefined) return guestFiles(join(cacheFolder, cached));

  const workFolder = await mkdtemp(join(cacheFolder, "building-"));
  try {
    const parts = await findGuestParts(workFolder, log);
    const result = join(workFolder, "result");
    await mkdir(result);
    await copyFile(parts.kernelPath, guestFiles(result).kernel);
    await writeFile(guestFiles(result).initrd, await makeInitrd(parts, { start, init }));
    return await publish(result, join(cacheFolder, `${parts.version}_${recipe}`));
  } finally {
    await rm(workFolder, { recursive: true, force: true });
  }
}

function guestFiles(folder: string): GuestFiles {
  return { kernel: join(folder, "vmlinuz"), initrd: join(folder, "initrd.cpio") };
}

/** A rename onto a folder with files fails: then another process was faster, and its guest is as good. */
async function publish(folder: string, target: string): Promise<GuestFiles> {
  try {
    await rename(folder, target);
  } catch (error) {
    await access(guestFiles(target).initrd).catch(() => Promise.reject(error as Error));
  }
  return guestFiles(target);
}

/** Not compressed: the emulated CPU would take longer to unpack it than QEMU takes to load it. */
async function makeInitrd(
  parts: GuestParts,
  { start, init }: { readonly start: Buffer; readonly init: Buffer },
): Promise<Buffer> {
  const modules = await collectModules(parts.modulesFolder, wantedModules);
  const order = modules.map((module) => `${module.name}\n`).join("");
  const entries: ArchiveEntry[] = [
    { path: "bin", kind: "folder" },
    { path: "bin/busybox", kind: "file", content: await readFile(parts.busyboxPath), executable: true },
    { path: "start.sh", kind: "file", content: start },
    { path: "init", kind: "file", content: init, executable: true },
    { path: "modules", kind: "folder" },
    { path: "modules/order", kind: "file", content: Buffer.from(order) },
    ...modules.map(({ name, content }) => ({ path: `modules/${name}.ko`, kind: "file" as const, content })),
  ];
  return cpioArchive(entries);
}
