import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const VERSION = "3.6.0";
/** What its sources import. Some of what it declares besides does not resolve, so npm cannot install it as it is. */
const REALLY_USED = [
  "@vates/async-each@1",
  "@vates/read-chunk@1",
  "@xen-orchestra/log@0.7",
  "promise-toolbox@0.21",
];

/** The directory of `@vates/nbd-client`, fetched on first use; throws with npm's reason when it cannot be had. */
export async function vatesPackage(under: string): Promise<string> {
  const directory = join(under, "vates");
  const target = join(directory, "node_modules/@vates/nbd-client");
  if (existsSync(join(target, "index.mjs"))) return target;
  try {
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, "package.json"), '{ "private": true }\n');
    await run("npm", ["install", "--no-audit", "--no-fund", ...REALLY_USED], { cwd: directory });
    await run("npm", ["pack", `@vates/nbd-client@${VERSION}`], { cwd: directory });
    const tarball = (await readdir(directory)).find((name) => name.endsWith(".tgz"));
    if (tarball === undefined) throw new Error("npm pack left no tarball");
    await mkdir(target, { recursive: true });
    await run("tar", ["-xzf", tarball, "-C", target, "--strip-components=1"], { cwd: directory });
  } catch (error) {
    await rm(directory, { recursive: true, force: true });
    throw error;
  }
  return target;
}
