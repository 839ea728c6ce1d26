import { execFile } from "node:child_process";
import { mkdir, readdir } from "node:fs/promises";
import { join, relative } from "node:path";
import { runCommand } from "../guest/commands.js";
import { copyToRaw, fileDigest } from "../support/image-tool.js";

export interface FileSystem {
  /** e2fsck's exit code for a full check that changes nothing; 0 means clean. */
  readonly checkExitCode: number;
  /** What e2fsck had to say; of interest if it is not clean. */
  readonly words: string;
  /** Digests of all files, by path as the guest names them (`./photos/…`). */
  readonly sums: ReadonlyMap<string, string>;
}

/**
 * Looks into the ext4 of a restored disk, in a copy below `folder`. The journal is replayed first, and nothing
 * else done, as mounting does after a power cut: what e2fsck then finds would be the backup's fault.
 */
export async function readFileSystem(image: string, folder: string): Promise<FileSystem> {
  const files = join(folder, "files");
  await mkdir(files, { recursive: true });
  const raw = join(folder, "copy.raw");
  await copyToRaw(image, "qcow2", raw);
  const replay = await e2fsck("-y", "-E", "journal_only", raw);
  const check = await e2fsck("-f", "-n", raw);
  // Prints a complaint where it may not give the files to root, and goes on.
  await runCommand("debugfs", ["-R", `rdump / ${files}`, raw]);
  return {
    checkExitCode: replay.exitCode === 0 ? check.exitCode : replay.exitCode,
    words: `${replay.words}\n${check.words}`.trim(),
    sums: await digests(files),
  };
}

async function e2fsck(...args: string[]): Promise<{ exitCode: number; words: string }> {
  const env = { ...process.env, PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin`, LC_ALL: "C" };
  return new Promise((resolve, reject) => {
    execFile("e2fsck", args, { env }, (error, stdout) => {
      if (error === null) resolve({ exitCode: 0, words: stdout });
      else if (typeof error.code === "number") resolve({ exitCode: error.code, words: stdout });
      else reject(new Error("e2fsck did not run", { cause: error }));
    });
  });
}

async function digests(folder: string): Promise<Map<string, string>> {
  const sums = new Map<string, string>();
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  for (const entry of entries.filter((candidate) => candidate.isFile())) {
    const path = join(entry.parentPath, entry.name);
    sums.set(`./${relative(folder, path)}`, await fileDigest(path));
  }
  return sums;
}
