import { readdir } from "node:fs/promises";
import { loadConfig, startAgent } from "../../../../src/agent.js";
import type { ServiceContext } from "../../../../src/services/context.js";
import { writeConfig } from "../../../support/config-file.js";
import type { TemporaryDirectory } from "../../../support/temporary-directory.js";

type Domain = NonNullable<NonNullable<Parameters<typeof writeConfig>[1]>["domains"]>[number];

/** The services in this process, as the command would have them, for one domain `vm`. */
export async function startQuietAgent(
  directory: TemporaryDirectory,
  domain: Domain,
): Promise<ServiceContext> {
  const configPath = await writeConfig(directory.path, {
    domains: [domain],
    more: { runtimeDir: directory.file("run") },
  });
  const ignore = (): void => undefined;
  return startAgent(await loadConfig(configPath), { debug: ignore, info: ignore, warn: ignore });
}

/** Files of the domain's snapshots, records of the journal, and what is in the runtime directory. */
export async function leftoversOf(
  directory: TemporaryDirectory,
  { store }: ServiceContext,
): Promise<readonly string[]> {
  const list = (path: string): Promise<string[]> => readdir(directory.file(path)).catch(() => []);
  const records = await store.operations("vm");
  return [
    ...(await list("state/domain-snapshots/vm")),
    ...(await list("run")),
    ...records.map(({ id }) => `record ${id}`),
  ].toSorted();
}
