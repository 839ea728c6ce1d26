import type { ExportAddress, SnapshotPlan } from "../model/snapshot-plan.js";
import type { ServiceContext } from "./context.js";

/** One line for each disk that is offered, with the way that its content takes to the reader. */
export function logExports(
  { log }: ServiceContext,
  { id, domain }: SnapshotPlan,
  addresses: readonly ExportAddress[],
): void {
  for (const { target, staged, socketPath } of addresses) {
    log.info(
      { operation: id, domain, target, staged: staged ?? false, socketPath },
      "Exporting a frozen disk",
    );
  }
}
