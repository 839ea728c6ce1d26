import { access, chmod, mkdir, readdir, rename } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { runCommand } from "../guest/commands.js";

const folder = fileURLToPath(new URL("../../var/tools", import.meta.url));

/**
 * A program of a Debian package that tests need and that is better not installed, since the installation of a server starts
 * it: the installed one, or one unpacked under var/tools. Undefined where neither can be had: the test then skips by name.
 */
export async function debianTool(name: string, packageName = name): Promise<string | undefined> {
  for (const place of (process.env["PATH"] ?? "").split(delimiter)) {
    if (await exists(join(place, name))) return join(place, name);
  }
  const unpacked = join(folder, packageName);
  if (!(await exists(unpacked))) await unpack(packageName, unpacked).catch(() => undefined);
  for (const place of ["usr/bin", "usr/sbin", "bin", "sbin"]) {
    if (await exists(join(unpacked, place, name))) return join(unpacked, place, name);
  }
  return undefined;
}

async function unpack(name: string, to: string): Promise<void> {
  const work = `${to}.${process.pid}`;
  await mkdir(work, { recursive: true });
  // apt fetches as the user _apt, who has to get into the folder.
  await chmod(work, 0o755);
  await runCommand("apt-get", ["download", "-q", name], { cwd: work });
  for (const file of await readdir(work)) await runCommand("dpkg-deb", ["-x", join(work, file), work]);
  await rename(work, to);
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
