import type { DomainConfig } from "../../model/config.js";
import { connectQmp, isQmpError, type QmpSession } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";
import { mapQmpError } from "../qmp-errors.js";
import { type BlockFacts, layersOf, locateDisks, type NodeLayer } from "../running/block-graph.js";

/** A session with the QEMU of a domain, or undefined if nobody listens. Fails with DOMAIN_UNREACHABLE for anything unclear. */
export async function connectToDomain(
  config: DomainConfig,
  signal?: AbortSignal,
): Promise<QmpSession | undefined> {
  if (config.qmp === undefined) return undefined;
  try {
    return await connectQmp({ socketPath: config.qmp, signal });
  } catch (error) {
    if (isQmpError(error, "QMP_SOCKET_ABSENT", "QMP_REFUSED")) return undefined;
    throw mapQmpError(error, `Domain ${config.name}`);
  }
}

/** Fails with DOMAIN_NOT_FOUND. */
export function configOf(domains: readonly DomainConfig[], name: string): DomainConfig {
  const config = domains.find((domain) => domain.name === name);
  if (config !== undefined) return config;
  throw new FleeceError("DOMAIN_NOT_FOUND", `The configuration has no domain ${name}`);
}

/** A disk of the running domain: its uppermost image first, then all below it. */
export interface DiskChain {
  readonly obstacle?: string;
  readonly layers: readonly NodeLayer[];
}

export async function queryChains(qmp: QmpSession): Promise<readonly DiskChain[]> {
  const facts = await queryFacts(qmp);
  return locateDisks(facts).map((disk) => ({
    layers: layersOf(facts, disk.diskNode),
    ...(disk.obstacle === undefined ? {} : { obstacle: disk.obstacle.reason }),
  }));
}

export async function queryFacts(qmp: QmpSession): Promise<BlockFacts> {
  return {
    devices: await qmp.execute("query-block"),
    nodes: await qmp.execute("query-named-block-nodes", { flat: true }),
    graph: await qmp.execute("x-debug-query-block-graph"),
  };
}

/** Fails with FOREIGN_FILTER or DOMAIN_BUSY when a filter, a job or a migration is at work. */
export async function checkIdle(qmp: QmpSession, domain: string): Promise<void> {
  for (const { obstacle } of await queryChains(qmp)) {
    if (obstacle === undefined) continue;
    throw new FleeceError("FOREIGN_FILTER", `A disk of domain ${domain} cannot be worked on: ${obstacle}`);
  }
  const [job] = await qmp.execute("query-jobs");
  if (job !== undefined) {
    throw new FleeceError("DOMAIN_BUSY", `A ${job.type} job (${job.id}) works on domain ${domain}`, {
      facts: { domain, job: job.id },
    });
  }
  const { status } = await qmp.execute("query-migrate");
  if (status !== undefined && !MIGRATION_AT_REST.has(status)) {
    throw new FleeceError("DOMAIN_BUSY", `Domain ${domain} is being migrated (${status})`, {
      facts: { domain },
    });
  }
}

const MIGRATION_AT_REST: ReadonlySet<string> = new Set(["none", "completed", "failed", "cancelled"]);
