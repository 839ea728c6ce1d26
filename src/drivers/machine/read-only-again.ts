import { isQmpError, type QmpSession } from "../../qmp/index.js";
import { childNode } from "../running/block-graph.js";

/**
 * Makes an image below the uppermost one read-only, as QEMU has it between jobs. QEMU 10.0 does not manage that when a `block-stream`
 * into it ends: the image stays writable with bitmaps that are not, so that every later write to it fails ("Operation not
 * permitted") and no bitmap of it can be changed. By hand it works. Idempotent; where QEMU refuses, all stays as it is.
 */
export async function readOnlyAgain(qmp: QmpSession, node: string): Promise<void> {
  const listed = await qmp.execute("query-named-block-nodes", { flat: true });
  const seen = listed.find((each) => each["node-name"] === node);
  if (seen === undefined || seen.ro || seen.drv !== "qcow2" || seen["dirty-bitmaps"] === undefined) return;
  const graph = await qmp.execute("x-debug-query-block-graph");
  const file = childNode(graph, node, "file");
  if (file === undefined) return;
  const { direct, "no-flush": noFlush } = seen.cache;
  try {
    await qmp.execute("blockdev-reopen", {
      options: [
        {
          ...{ driver: "qcow2", "node-name": node, "read-only": true, discard: "unmap" },
          ...{ cache: { direct, "no-flush": noFlush }, "detect-zeroes": seen.detect_zeroes },
          ...{ file, backing: childNode(graph, node, "backing") ?? null },
        },
      ],
    });
  } catch (error) {
    if (!isQmpError(error, "QMP_COMMAND_FAILED")) throw error;
  }
}
