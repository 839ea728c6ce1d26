import type { WriteFigures } from "../../model/guest-pace.js";
import type { QmpSession } from "../../qmp/index.js";
import { devicePath } from "./block-graph.js";

/**
 * QEMU counts at the guest's device, above our filter. `devices` has the object path of each target; a device that is gone is
 * left out.
 */
export async function guestWrites(
  qmp: Pick<QmpSession, "execute">,
  devices: ReadonlyMap<string, string>,
  targets: readonly string[],
): Promise<ReadonlyMap<string, WriteFigures>> {
  const all = await qmp.execute("query-blockstats");
  const byPath = new Map(all.map(({ qdev, stats }) => [devicePath(qdev ?? ""), stats]));
  return new Map(
    targets.flatMap((target) => {
      const stats = byPath.get(devices.get(target) ?? "");
      if (stats === undefined) return [];
      return [[target, { operations: stats.wr_operations, totalMs: stats.wr_total_time_ns / 1e6 }] as const];
    }),
  );
}
