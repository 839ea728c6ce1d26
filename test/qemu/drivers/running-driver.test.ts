import { mkdir, readdir } from "node:fs/promises";
import { expect } from "vitest";
import { QemuDriverFactory } from "../../../src/drivers/driver-factory.js";
import { QemuHostCleaner } from "../../../src/drivers/host-cleaner.js";
import { NbdReaderFactory } from "../../../src/drivers/nbd-io.js";
import { systemClock } from "../../../src/drivers/system-clock.js";
import { noSnapshots } from "../../../src/model/domain-snapshot.js";
import type { DriverHarness } from "../../contract/block-driver.js";
import { describeBlockDriver } from "../../contract/block-driver.js";
import { domainConfig } from "../../support/config-file.js";
import { createImage } from "../../support/image-tool.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";
import type { TestDisk } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";

const MIB = 1024 * 1024;

/** Three buses, odd sizes. */
async function startHarness(exports: "auto" | "staged"): Promise<DriverHarness> {
  const directory = await TemporaryDirectory.create();
  const disks: TestDisk[] = [
    { target: "vda", path: directory.file("a.qcow2"), format: "qcow2", bus: "virtio-blk" },
    { target: "sdb", path: directory.file("b.qcow2"), format: "qcow2", bus: "scsi" },
    { target: "hdc", path: directory.file("c.raw"), format: "raw", bus: "ide" },
  ];
  const sizes = [10 * MIB + 512, 4 * MIB + 35 * 512, 3 * MIB + 4096 + 512];
  for (const [index, disk] of disks.entries()) {
    await createImage(disk.path, sizes[index] ?? MIB, { format: disk.format });
  }
  const vm = await TestVm.start({ directory: directory.path, disks });
  const runtimeRoot = directory.file("run");
  const scratchDir = directory.file("scratch");
  await mkdir(scratchDir);
  const domain = { ...domainConfig("vm", vm), exports };
  const ignore = (): void => undefined;
  const factory = new QemuDriverFactory({
    domains: [domain as never],
    domainSnapshots: { read: (domain) => Promise.resolve(noSnapshots(domain)) },
    clock: systemClock,
    runtimeRoot,
    log: { debug: ignore, info: ignore, warn: ignore },
    cbwTimeoutMs: 4000,
  });
  const done = (verdict: { ok: boolean; text: string }) => expect(verdict).toMatchObject({ ok: true });
  return {
    scratchDir,
    host: new QemuHostCleaner(),
    readers: new NbdReaderFactory(),
    driver: () => factory.open("vm"),
    write: async (target, offset, length, pattern) =>
      done(await vm.guestWrite(target, offset, length, pattern)),
    zero: async (target, offset, length) => done(await vm.guestDiscard(target, offset, length)),
    traces: async () => {
      const { bitmaps: _, ...state } = await vm.blockState();
      return {
        ...state,
        status: await vm.qmp("query-status"),
        scratch: await readdir(scratchDir),
        run: await readdir(runtimeRoot).catch(() => []),
      };
    },
    async [Symbol.asyncDispose]() {
      await vm[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

describeBlockDriver("a running QEMU", () => startHarness("auto"));
describeBlockDriver("a running QEMU whose exports are staged", () => startHarness("staged"));
