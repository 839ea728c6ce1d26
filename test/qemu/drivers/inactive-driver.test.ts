import { mkdir, readdir } from "node:fs/promises";
import { QemuDriverFactory } from "../../../src/drivers/driver-factory.js";
import { QemuHostCleaner } from "../../../src/drivers/host-cleaner.js";
import { NbdReaderFactory } from "../../../src/drivers/nbd-io.js";
import { systemClock } from "../../../src/drivers/system-clock.js";
import { noSnapshots } from "../../../src/model/domain-snapshot.js";
import type { DriverHarness } from "../../contract/block-driver.js";
import { describeBlockDriver } from "../../contract/block-driver.js";
import { createImage, writeImage } from "../../support/image-tool.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";

const MIB = 1024 * 1024;

async function startHarness(): Promise<DriverHarness> {
  const directory = await TemporaryDirectory.create();
  const disks = [
    { target: "vda", file: directory.file("a, b:c.qcow2"), format: "qcow2" as const },
    { target: "sdb", file: directory.file("b.qcow2"), format: "qcow2" as const },
  ];
  const sizes = [10 * MIB + 512, 4 * MIB + 35 * 512];
  for (const [index, disk] of disks.entries()) await createImage(disk.file, sizes[index] ?? MIB);
  const runtimeRoot = directory.file("run");
  const scratchDir = directory.file("scratch");
  await mkdir(scratchDir);
  const domains = [{ name: "vm", disks, qmp: directory.file("no.qmp") }];
  const ignore = (): void => undefined;
  const factory = new QemuDriverFactory({
    domains,
    domainSnapshots: { read: (domain) => Promise.resolve(noSnapshots(domain)) },
    clock: systemClock,
    runtimeRoot,
    log: { debug: ignore, info: ignore, warn: ignore },
    cbwTimeoutMs: 4000,
  });
  const file = (target: string): string => disks.find((disk) => disk.target === target)?.file ?? "";
  return {
    scratchDir,
    host: new QemuHostCleaner(),
    readers: new NbdReaderFactory(),
    driver: () => factory.open("vm"),
    write: (target, offset, length, pattern) =>
      writeImage(file(target), "qcow2", `write -P ${pattern} ${offset} ${length}`),
    zero: (target, offset, length) => writeImage(file(target), "qcow2", `discard ${offset} ${length}`),
    traces: async () => ({
      scratch: await readdir(scratchDir),
      run: await readdir(runtimeRoot).catch(() => []),
    }),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

describeBlockDriver("an inactive domain", startHarness);
