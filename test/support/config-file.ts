import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { stringify } from "yaml";
import type { JsonObject } from "./monitor.js";
import type { TestVm } from "./vm.js";
import type { DiskFormat } from "./vm-arguments.js";

export interface DomainConfig {
  readonly name: string;
  readonly qmp?: string;
  readonly guestAgent?: string;
  readonly quiesce?: JsonObject;
  readonly disks?: readonly { readonly target: string; readonly file: string; readonly format: DiskFormat }[];
  readonly exports?: "auto" | "staged";
  readonly retention?: JsonObject;
}

export interface TestConfig {
  /** Default: `<directory>/state`. */
  readonly stateDir?: string;
  /** Default: `<directory>/scratch`. */
  readonly scratchDir?: string;
  readonly domains?: readonly DomainConfig[];
  /** Default: one named `default` at `<directory>/backups`. */
  readonly repositories?: readonly { readonly name: string; readonly path: string }[];
  /** Further top-level settings, as they are. */
  readonly more?: JsonObject;
}

/** Writes `<directory>/fleece.yaml` and resolves to its path. */
export async function writeConfig(directory: string, config: TestConfig = {}): Promise<string> {
  await mkdir(directory, { recursive: true });
  const path = join(directory, "fleece.yaml");
  const content = {
    stateDir: config.stateDir ?? join(directory, "state"),
    scratchDir: config.scratchDir ?? join(directory, "scratch"),
    domains: config.domains ?? [],
    repositories: config.repositories ?? [{ name: "default", path: join(directory, "backups") }],
    ...config.more,
  };
  await writeFile(path, stringify(content), { mode: 0o600 });
  return path;
}

/** The VM as a domain that can be backed up running and inactive. */
export function domainConfig(name: string, vm: Pick<TestVm, "qmpPath" | "disks">): DomainConfig {
  const disks = vm.disks.map(({ target, path, format }) => ({ target, file: path, format }));
  return { name, qmp: vm.qmpPath, disks };
}
