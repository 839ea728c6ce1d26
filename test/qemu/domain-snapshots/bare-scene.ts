import { expect, vi } from "vitest";
import type {
  CreateDomainSnapshotRequest,
  DomainSnapshot,
  DomainSnapshotOptions,
} from "../../../src/model/domain-snapshot.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { domainConfig } from "../../support/config-file.js";
import { createImage, fillImage } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { QmpProxy } from "../../support/qmp-proxy.js";
import type { TemporaryDirectory } from "../../support/temporary-directory.js";
import type { TestDisk } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";
import { leftoversOf, startQuietAgent } from "./support/quiet-agent.js";

const DISK_BYTES = 8 << 20;
export const FILL_BYTES = 1 << 20;
export const FILL_PATTERN = 0x5a;

/** A bitmap that this program would have made: of a checkpoint. */
export const CHECKPOINT_BITMAP = "fleece:1:1:1700000000000:cp";

/** A QEMU without a guest, whose disks hold a known pattern; `proxied`: behind a proxy of its monitor. */
export interface BareScene {
  readonly directory: TemporaryDirectory;
  readonly vm: TestVm;
  readonly proxy: QmpProxy;
  readonly context: ServiceContext;
  create(
    request?: Partial<CreateDomainSnapshotRequest>,
    options?: DomainSnapshotOptions & Partial<Pick<ServiceContext, "takers" | "snapshotFiles">>,
  ): Promise<DomainSnapshot>;
  status(): Promise<string>;
  /** Files of the domain's snapshots, records of the journal, and what is in the runtime directory. */
  leftovers(): Promise<readonly string[]>;
  /** Fails unless the guest runs on its first disks, and neither QEMU nor the host has anything of a snapshot. */
  expectUntouched(): Promise<void>;
}

export async function startBareScene({ proxied = false } = {}): Promise<BareScene> {
  const directory = await temporaryDirectory();
  const disks: TestDisk[] = [
    { target: "vda", path: directory.file("vda.qcow2"), format: "qcow2" },
    { target: "vdb", path: directory.file("vdb.raw"), format: "raw" },
  ];
  for (const { path, format } of disks) {
    await createImage(path, DISK_BYTES, { format });
    await fillImage(path, format, { offset: 0, length: FILL_BYTES, pattern: FILL_PATTERN });
  }
  const vm = untilTestEnds(await TestVm.start({ directory: directory.path, disks }));
  const node = vm.nodeName("vda");
  await vm.qmp("block-dirty-bitmap-add", { node, name: CHECKPOINT_BITMAP, persistent: true });
  const proxyPath = directory.file("proxy.qmp");
  const proxy = untilTestEnds(await QmpProxy.listen(proxyPath, vm.qmpPath));
  const context = await startQuietAgent(directory, {
    ...domainConfig("vm", vm),
    qmp: proxied ? proxyPath : vm.qmpPath,
    guestAgent: directory.file("qga"),
  });
  const pristine = await vm.blockState();
  const status = async (): Promise<string> =>
    ((await vm.qmp("query-status")) as { readonly status: string }).status;
  const leftovers = () => leftoversOf(directory, context);
  return {
    directory,
    vm,
    proxy,
    context,
    create: (request, { takers = context.takers, snapshotFiles = context.snapshotFiles, ...options } = {}) =>
      createDomainSnapshot({ ...context, takers, snapshotFiles }, { domain: "vm", ...request }, options),
    status,
    leftovers,
    expectUntouched: async () => {
      expect(await status()).toBe("running");
      // QEMU has cancelled a save and runs before it has read the bitmaps again.
      await vi.waitFor(async () => expect(await vm.blockState()).toEqual(pristine), { timeout: 20_000 });
      expect(await leftovers()).toEqual([]);
      expect((await vm.guestWrite("vdb", 4 << 20, 65_536, 0x11)).ok).toBe(true);
    },
  };
}
