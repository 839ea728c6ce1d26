import { createCipheriv } from "node:crypto";
import { copyFile, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { runCommand } from "./commands.js";

const mebibyte = 1 << 20;
const licences = "/usr/share/common-licenses";

export interface DataDiskOptions {
  /** Virtual size of the disk. Default: 1 GiB. */
  readonly sizeBytes?: number;
  /** About how much the files take together, half of it incompressible. Default: 150 MiB. */
  readonly contentBytes?: number;
}

/** Makes a qcow2 with an ext4 file system full of files, the same ones each time. It needs no root: nothing is mounted. */
export async function makeDataDisk(path: string, options: DataDiskOptions = {}): Promise<void> {
  const sizeBytes = options.sizeBytes ?? 1024 * mebibyte;
  const workFolder = await mkdtemp(join(dirname(path), "data-disk-"));
  try {
    const files = join(workFolder, "files");
    await mkdir(files);
    await makeFiles(files, options.contentBytes ?? 150 * mebibyte);
    const raw = join(workFolder, "disk.raw");
    // All metadata now: the kernel would otherwise go on writing it in the background for a while.
    const features = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0";
    await runCommand("mkfs.ext4", [
      "-q",
      "-F",
      "-L",
      "data",
      "-E",
      features,
      "-d",
      files,
      raw,
      `${sizeBytes / 1024}k`,
    ]);
    await runCommand("qemu-img", ["convert", "-q", "-f", "raw", "-O", "qcow2", raw, path]);
  } finally {
    await rm(workFolder, { recursive: true, force: true });
  }
}

async function makeFiles(folder: string, contentBytes: number): Promise<void> {
  await copyLicences(join(folder, "licences"));
  await makeDocuments(join(folder, "documents"), contentBytes / 2);
  await makePhotos(join(folder, "photos"), contentBytes / 2);
}

/** Real text, where the distribution has it. */
async function copyLicences(folder: string): Promise<void> {
  await mkdir(folder);
  const entries = await readdir(licences, { withFileTypes: true }).catch(() => []);
  for (const entry of entries.filter((candidate) => candidate.isFile())) {
    await copyFile(join(licences, entry.name), join(folder, entry.name));
  }
}

/** Tables of orders: text that compresses well, no two lines alike. */
async function makeDocuments(folder: string, totalBytes: number): Promise<void> {
  await mkdir(folder);
  let written = 0;
  for (let month = 1; written < totalBytes; month++) {
    const lines = Array.from({ length: 20_000 }, (_, row) => {
      const amount = ((month * 7919 + row * 104_729) % 100_000) / 100;
      return `${month},${row},customer-${(row * 31 + month) % 997},article-${(row * 17) % 463},${amount.toFixed(2)}\n`;
    });
    const text = lines.join("");
    await writeFile(join(folder, `orders-${String(month).padStart(4, "0")}.csv`), text);
    written += text.length;
  }
}

/** Bytes without any pattern, as compressed pictures have, from 64 KiB to 4 MiB. */
async function makePhotos(folder: string, totalBytes: number): Promise<void> {
  await mkdir(folder);
  const noise = createCipheriv("aes-128-ctr", Buffer.alloc(16, "fleece"), Buffer.alloc(16));
  let written = 0;
  for (let index = 1; written < totalBytes; index++) {
    const length = 65_536 * (1 + ((index * 29) % 64));
    await writeFile(
      join(folder, `photo-${String(index).padStart(4, "0")}.jpg`),
      noise.update(Buffer.alloc(length)),
    );
    written += length;
  }
}
