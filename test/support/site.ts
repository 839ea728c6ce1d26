import { mkdir, readdir, stat } from "node:fs/promises";
import path from "node:path";
import { domainConfig, writeConfig, type TestConfig } from "./config-file.js";
import { runFleece, startFleece, type FleeceProcess, type FleeceResult } from "./fleece.js";
import { createImage, fillImage, imageInfo } from "./image-tool.js";
import { temporaryDirectory, untilTestEnds } from "./lifetime.js";
import type { JsonObject } from "./monitor.js";
import type { TemporaryDirectory } from "./temporary-directory.js";
import type { TestDisk } from "./vm-arguments.js";
import { TestVm } from "./vm.js";

const MIB = 1024 * 1024;

export interface SiteDisk extends Omit<TestDisk, "path"> {
  readonly sizeBytes: number;
  /** Filled from the start with a pattern, so that there is something to back up. */
  readonly filledBytes?: number;
}

export interface SiteOptions {
  readonly config?: TestConfig;
  /** Made beforehand; default: `backups` and `scratch`. */
  readonly directories?: readonly string[];
  readonly disks?: readonly SiteDisk[];
  /** Of the domain; default: as the program has it. */
  readonly exports?: "auto" | "staged";
  /** Settings of the domain and of the top level; default: as the program has them. */
  readonly retention?: JsonObject;
  readonly scratch?: JsonObject;
  readonly jobs?: JsonObject[];
  /** Further arguments for QEMU, as they are. */
  readonly extraArguments?: readonly string[];
}

/** A host as an administrator has it: a VM named `vm`, a configuration, and the built command. */
export interface Site {
  readonly directory: TemporaryDirectory;
  readonly vm: TestVm;
  readonly configPath: string;
  /** `fleece --config … --embedded …` to its end. */
  run(...args: string[]): Promise<FleeceResult>;
  start(...args: string[]): Promise<FleeceProcess>;
  /** Runs with `--json`, expects success and gives the message. */
  json<T>(...args: string[]): Promise<T>;
  /** Everything that a command without effect must not have changed. */
  state(): Promise<unknown>;
  /** Files of the repository, the scratch directory, the runtime directory and the journal; locks left out. */
  files(): Promise<string[]>;
}

const DEFAULT_DISKS: readonly SiteDisk[] = [
  { target: "vda", format: "qcow2", sizeBytes: 8 * MIB, filledBytes: 4 * MIB },
  { target: "vdb", format: "qcow2", sizeBytes: 8 * MIB, filledBytes: 4 * MIB },
];

export async function startSite(options: SiteOptions = {}): Promise<Site> {
  const directory = await temporaryDirectory();
  const disks: TestDisk[] = [];
  for (const { sizeBytes, filledBytes, ...disk } of options.disks ?? DEFAULT_DISKS) {
    const file = directory.file(`${disk.target}.${disk.format}`);
    await createImage(file, sizeBytes, { format: disk.format });
    if (filledBytes !== undefined) {
      await fillImage(file, disk.format, { offset: 0, length: filledBytes, pattern: 0x5a });
    }
    disks.push({ ...disk, path: file });
  }
  for (const name of options.directories ?? ["backups", "scratch"]) await mkdir(directory.file(name));
  const vm = untilTestEnds(
    await TestVm.start({ directory: directory.path, disks, extraArguments: options.extraArguments ?? [] }),
  );
  const configPath = await writeConfig(directory.path, {
    domains: [
      {
        ...domainConfig("vm", vm),
        ...(options.exports === undefined ? {} : { exports: options.exports }),
        ...(options.retention === undefined ? {} : { retention: options.retention }),
      },
    ],
    more: {
      runtimeDir: directory.file("run"),
      ...(options.scratch === undefined ? {} : { scratch: options.scratch }),
      ...(options.jobs === undefined ? {} : { jobs: options.jobs }),
    },
    ...options.config,
  });
  const run = (...args: string[]): Promise<FleeceResult> =>
    runFleece(["--embedded", ...args], { configPath });
  const files = (): Promise<string[]> =>
    tree(directory.path, (name) => /^(backups|scratch|run|state\/operations)\//.test(name));
  return {
    directory,
    vm,
    configPath,
    run,
    start: (...args) => startFleece(["--embedded", ...args], { configPath }),
    async json<T>(...args: string[]) {
      const result = await run(...args, "--json");
      if (result.exitCode !== 0) throw new Error(`fleece ${args.join(" ")} failed: ${result.stderr}`);
      return result.json() as T;
    },
    files,
    state: async () => ({
      vm: vm.running ? await vm.blockState() : await imageInfo(disks[0]?.path ?? "", "qcow2"),
      files: await files(),
    }),
  };
}

async function tree(root: string, wanted: (name: string) => boolean): Promise<string[]> {
  const names = await readdir(root, { recursive: true });
  const found: string[] = [];
  for (const name of names.filter(wanted)) {
    const entry = await stat(path.join(root, name)).catch(() => undefined);
    if (entry?.isFile() === true && !name.endsWith(".lock")) {
      found.push(`${name} ${entry.size} ${entry.mtimeMs}`);
    }
  }
  return found.toSorted();
}
