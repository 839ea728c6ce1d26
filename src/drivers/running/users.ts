import type { DomainState } from "../../model/snapshot-plan.js";
import { isOurNode } from "../../model/snapshot-plan.js";
import type { QmpSession } from "../../qmp/index.js";

/** Who else is at work in this QEMU: nodes with our mark, and NBD exports without it (ids of ours begin with a node's name). */
export async function lookForUsers(
  qmp: QmpSession,
): Promise<Required<Pick<DomainState, "ourNodes" | "foreignExports">>> {
  const [nodes, exports] = await Promise.all([
    qmp.execute("query-named-block-nodes", { flat: true }),
    qmp.execute("query-block-exports"),
  ]);
  return {
    ourNodes: nodes.map((node) => node["node-name"] ?? "").filter(isOurNode),
    foreignExports: exports.filter(({ type, id }) => type === "nbd" && !isOurNode(id)).map(({ id }) => id),
  };
}
