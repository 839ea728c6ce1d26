import { dirname } from "node:path";
import type { OperationRecord } from "../ports/state-store.js";
import type { ServiceContext } from "./context.js";

/** What a domain has under way now. */
export interface DomainUsage {
  readonly domain: string;
  /** What its operations take in the scratch directory. */
  readonly scratchBytes: number;
  readonly openSnapshots: number;
  /** When the first of their leases ends; undefined without one. */
  readonly leaseEndMs: number | undefined;
  readonly exports: number;
}

/** Of each domain of the configuration, from the journal alone: no domain is asked. */
export async function domainUsage(context: ServiceContext): Promise<readonly DomainUsage[]> {
  const records = await context.store.operations();
  return Promise.all(
    context.domains.map(async (domain) => {
      const own = records.filter((record) => record.domain === domain);
      const open = own.flatMap(({ subject }) =>
        subject.kind === "block-snapshot" && subject.phase === "open" ? [subject] : [],
      );
      return {
        domain,
        scratchBytes: await context.scratch.usedBytes(own.flatMap((record) => scratchFiles(context, record))),
        openSnapshots: open.length,
        leaseEndMs: open.map(({ leaseUntilMs }) => leaseUntilMs).toSorted((a, b) => a - b)[0],
        exports: open.reduce((sum, { exports }) => sum + exports.length, 0),
      };
    }),
  );
}

function scratchFiles({ scratchDir }: ServiceContext, { undo }: OperationRecord): readonly string[] {
  return undo.flatMap((entry) =>
    entry.kind === "file" && dirname(entry.path) === scratchDir ? [entry.path] : [],
  );
}
