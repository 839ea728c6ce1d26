import type { QmpSession } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";
import { type BlockFacts, layersOf, locateDisks, type NodeLayer } from "../running/block-graph.js";
import { MIGRATION_ENDED } from "./settle-guest.js";

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
  if (status !== undefined && !MIGRATION_ENDED.has(status)) {
    throw new FleeceError("DOMAIN_BUSY", `Domain ${domain} is being migrated (${status})`, {
      facts: { domain },
    });
  }
}
