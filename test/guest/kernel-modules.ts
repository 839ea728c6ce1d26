import { readdir, readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { gunzipSync } from "node:zlib";
import { runCommand } from "./commands.js";

export interface KernelModule {
  readonly name: string;
  readonly content: Buffer;
}

/** Reads modules with those that they depend on, in an order in which they can be loaded. */
export async function collectModules(folder: string, wanted: readonly string[]): Promise<KernelModule[]> {
  const files = await moduleFiles(folder);
  const collected = new Map<string, KernelModule>();
  const visit = async (name: string): Promise<void> => {
    const path = files.get(name);
    // A module without a file is built into the kernel.
    if (path === undefined || collected.has(name)) return;
    const content = await readModule(path);
    for (const dependency of dependencies(content)) await visit(dependency);
    collected.set(name, { name, content });
  };
  for (const name of wanted) await visit(name);
  return [...collected.values()];
}

/** Module names are written with either dash or underscore; the kernel knows the underscore. */
async function moduleFiles(folder: string): Promise<Map<string, string>> {
  const names = await readdir(folder, { recursive: true });
  const modules = names.filter((name) => /\.ko(\.(xz|zst|gz))?$/.test(name));
  return new Map(modules.map((name) => [moduleName(name), join(folder, name)]));
}

function moduleName(path: string): string {
  return basename(path)
    .replace(/\.ko(\.\w+)?$/, "")
    .replaceAll("-", "_");
}

async function readModule(path: string): Promise<Buffer> {
  if (path.endsWith(".xz")) return runCommand("xz", ["-dc", path]);
  if (path.endsWith(".zst")) return runCommand("zstd", ["-qdc", path]);
  const content = await readFile(path);
  return path.endsWith(".gz") ? gunzipSync(content) : content;
}

/**
 * From the module's own `.modinfo` strings: an unpacked package has no modules.dep, which is made when the package
 * is installed.
 */
function dependencies(module: Buffer): string[] {
  const match = /\0depends=([\w,-]*)\0/.exec(module.toString("latin1"));
  return (match?.[1] ?? "")
    .split(",")
    .filter((name) => name !== "")
    .map((name) => name.replaceAll("-", "_"));
}
