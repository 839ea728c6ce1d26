import { expect } from "vitest";
import type {
  CreateDomainSnapshotRequest,
  DomainSnapshot,
  DomainSnapshotOptions,
} from "../../../src/model/domain-snapshot.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { CounterGuest } from "../../guest/counter-guest.js";
import { domainConfig } from "../../support/config-file.js";
import { createImage, qemuImg } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import type { TemporaryDirectory } from "../../support/temporary-directory.js";
import type { TestDisk } from "../../support/vm-arguments.js";
import { leftoversOf, startQuietAgent } from "./support/quiet-agent.js";

const DISK_BYTES = 32 << 20;

export type Formats = readonly ("qcow2" | "raw")[];

/** A counter guest, and the services as a process of ours sees it. */
export interface CounterScene {
  readonly directory: TemporaryDirectory;
  readonly guest: CounterGuest;
  readonly context: ServiceContext;
  create(
    request?: Partial<CreateDomainSnapshotRequest>,
    options?: DomainSnapshotOptions,
  ): Promise<DomainSnapshot>;
  /** A second QEMU with a snapshot's memory, on new overlays over the disks of the same or of another snapshot; it is paused. */
  load(memory: DomainSnapshot, disks?: DomainSnapshot): Promise<CounterGuest>;
  status(): Promise<string>;
  /** Fails unless the guest counts, on disks that are those that it has in RAM. */
  expectCounting(): Promise<void>;
  /** See `leftoversOf`. */
  leftovers(): Promise<readonly string[]>;
}

export async function startCounterScene(formats: Formats): Promise<CounterScene> {
  const directory = await temporaryDirectory();
  const disks: TestDisk[] = [];
  for (const [index, format] of formats.entries()) {
    const target = `vd${"abc".charAt(index)}`;
    const path = directory.file(`${target}.${format}`);
    await createImage(path, DISK_BYTES, { format });
    disks.push({ target, path, format });
  }
  const guest = untilTestEnds(await CounterGuest.boot({ directory: directory.path, disks }));
  const context = await startQuietAgent(directory, domainConfig("vm", guest.vm));
  let loaded = 0;
  const status = async (): Promise<string> => {
    const { status: word } = (await guest.vm.qmp("query-status")) as { status: string };
    return word;
  };
  return {
    directory,
    guest,
    context,
    create: (request, options) => createDomainSnapshot(context, { domain: "vm", ...request }, options),
    load: async (memory, of = memory) => {
      if (memory.memory?.kind !== "external") throw new Error("Expected a snapshot with a memory file");
      const name = `loaded${loaded++}`;
      const overlays: TestDisk[] = [];
      for (const { target, file, format } of of.disks) {
        const path = directory.file(`${name}-${target}.qcow2`);
        await qemuImg("create", "-q", "-f", "qcow2", "-b", file, "-F", format, path);
        overlays.push({ target, path, format: "qcow2" });
      }
      const extraArguments = ["-incoming", `exec:cat ${memory.memory.file}`, "-S"];
      const second = untilTestEnds(
        await CounterGuest.start({ directory: directory.path, name, disks: overlays, extraArguments }),
      );
      const loadedState = async (): Promise<string> =>
        ((await second.vm.qmp("query-status")) as { status: string }).status;
      await expect.poll(loadedState, { timeout: 60_000 }).not.toBe("inmigrate");
      return second;
    },
    status,
    expectCounting: async () => {
      expect(await status()).toBe("running");
      await guest.counter.waitTurns(2);
      expect(guest.counter.mismatches()).toEqual([]);
    },
    leftovers: () => leftoversOf(directory, context),
  };
}
