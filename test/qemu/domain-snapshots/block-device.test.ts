import { mkdir, open } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { restoreBackup } from "../../../src/services/backup-read.js";
import { runBackup } from "../../../src/services/backup-run.js";
import { createBlockSnapshot, deleteBlockSnapshot } from "../../../src/services/block-snapshots.js";
import { startExports } from "../../../src/services/block-exports.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { domainConfig } from "../../support/config-file.js";
import { compareImages, writeImage } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { loopDevice } from "../../support/loop-device.js";
import { endMachines, machinesOf } from "../../support/machines-of.js";
import { Monitor } from "../../support/monitor.js";
import type { TestDisk } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";
import { leftoversOf, startQuietAgent } from "./support/quiet-agent.js";

const MIB = 1024 * 1024;
const BLOCK = 65_536;
const DOMAIN = "vm";

/** A domain whose disk is a block device, as a volume of LVM is one; undefined where none can be had. */
async function startScene() {
  const directory = await temporaryDirectory();
  const content = directory.file("content");
  const file = await open(content, "wx");
  await file.truncate(8 * MIB);
  await file.close();
  await writeImage(content, "raw", `write -P 1 0 ${MIB}`);
  const path = await loopDevice(content);
  if (path === undefined) return undefined;
  for (const name of ["backups", "scratch"]) await mkdir(directory.file(name));
  const disk: TestDisk = { target: "vda", path, format: "raw", blockDevice: true };
  untilTestEnds({ [Symbol.asyncDispose]: () => endMachines(directory.path) });
  const vm = untilTestEnds(await TestVm.start({ directory: directory.path, disks: [disk] }));
  const context = await startQuietAgent(directory, domainConfig(DOMAIN, vm));
  const write = async (pattern: number): Promise<void> => {
    expect(await vm.guestWrite("vda", 0, BLOCK, pattern)).toMatchObject({ ok: true });
  };
  const layers = async () => (await context.domainSnapshots.read(DOMAIN)).layers;
  return { directory, path, vm, context, write, layers };
}

const MISSING = "loop devices are not permitted here";

describe("A disk that is a block device", () => {
  it("is snapshotted with memory by overlays, reverted, and merged back into the device", async ({
    skip,
  }) => {
    const scene = await startScene();
    if (scene === undefined) return skip(MISSING);
    const { context, directory, path, vm, write } = scene;
    const one = await createDomainSnapshot(context, { domain: DOMAIN, name: "one" });
    expect(one).toMatchObject({ memory: { kind: "external" }, disks: [{ file: path, format: "raw" }] });
    await write(2);
    const { pid } = await revertDomainSnapshot(context, { domain: DOMAIN, name: "one", force: true });
    expect(await machinesOf(directory.path)).toEqual([pid]);
    await deleteDomainSnapshot(context, { domain: DOMAIN, name: "one" });
    expect(await scene.layers()).toMatchObject([{ active: path, home: path, format: "raw" }]);
    expect(await leftoversOf(directory, context)).toEqual(["snapshots.json"]);
    const monitor = await Monitor.connect(vm.qmpPath, AbortSignal.timeout(60_000));
    await monitor.execute("quit").catch(() => undefined);
    monitor.close();
    await expect.poll(() => machinesOf(directory.path), { timeout: 60_000 }).toEqual([]);
    await writeImage(path, "raw", `read -P 1 0 ${MIB}`);
  });

  it("is backed up and snapshotted while the domain is off, unless it is written to meanwhile", async ({
    skip,
  }) => {
    const scene = await startScene();
    if (scene === undefined) return skip(MISSING);
    const { context, directory, path, vm } = scene;
    await vm.quit();
    const { id } = await runBackup(context, { domain: DOMAIN });
    const [restored] = await restoreBackup(context, { id, directory: directory.file("restored") });
    expect(await compareImages(path, "raw", restored?.file ?? "", "raw")).toMatchObject({ identical: true });

    await createDomainSnapshot(context, { domain: DOMAIN, name: "off" });
    const [{ active } = { active: "" }] = await scene.layers();
    await writeImage(active, "qcow2", `write -P 3 0 ${BLOCK}`);
    await deleteDomainSnapshot(context, { domain: DOMAIN, name: "off" });
    await writeImage(path, "raw", `read -P 3 0 ${BLOCK}`);

    // By a guest that was started and has ended again, so that no lock tells of it.
    await createBlockSnapshot(context, { domain: DOMAIN, name: "look", leaseMs: 600_000 });
    await writeImage(path, "raw", `write -P 4 0 ${BLOCK}`, "flush");
    await expect(startExports(context, { domain: DOMAIN, snapshot: "look" })).rejects.toMatchObject({
      code: "DISK_CHANGED",
    });
    await deleteBlockSnapshot(context, DOMAIN, "look", "failure");
  });
});
