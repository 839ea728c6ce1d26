import type { SnapshotNodes } from "../../model/snapshot-plan.js";
import type { QmpSession } from "../../qmp/index.js";

/**
 * Keeps a frozen disk at its size. The filter does not preserve what is cut off, so that readers of a disk that has become
 * smaller would get zeroes without an error; and QEMU 7.2 aborts, with the VM, when content beyond the new end is given up
 * (an assertion in `hbitmap_reset`). No event tells of it in time. `block_resize` by the name of the disk's own node is refused
 * by QEMU itself, since the scratch image is based on it; this refuses it by the name of the filter and of the device.
 *
 * The node that does so is never read: `blkdebug` is the one driver whose hold on its child can be chosen.
 */
export async function addResizeGuard(qmp: QmpSession, nodes: SnapshotNodes): Promise<void> {
  await qmp.execute("blockdev-add", {
    driver: "blkdebug",
    "node-name": guardNode(nodes),
    "read-only": true,
    "unshare-child-perms": ["resize"],
    image: nodes.filter,
  });
}

export function guardNode({ filter }: SnapshotNodes): string {
  return filter.replace(/-filter$/, "-guard");
}
