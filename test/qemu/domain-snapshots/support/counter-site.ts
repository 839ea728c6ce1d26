import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { startAgent } from "../../../../src/agent.js";
import { parseConfig } from "../../../../src/model/config.js";
import {
  type DomainSnapshot,
  type DomainSnapshots,
  findSnapshot,
} from "../../../../src/model/domain-snapshot.js";
import type { Logger } from "../../../../src/ports/logger.js";
import type { ServiceContext } from "../../../../src/services/context.js";
import { CounterGuest } from "../../../guest/counter-guest.js";
import { writeConfig } from "../../../support/config-file.js";
import { createImage, qemuImg } from "../../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../../support/lifetime.js";
import { Monitor } from "../../../support/monitor.js";
import type { TemporaryDirectory } from "../../../support/temporary-directory.js";
import type { TestDisk } from "../../../support/vm-arguments.js";

const MIB = 1024 * 1024;

export const DOMAIN = "vm";

/** Left out of the arguments, it makes a machine that cannot load a memory image of the one with it. */
export const EXTRA_DEVICE = ["-device", "virtio-rng-pci,id=rng0"];

/** A counter guest with a configuration, the services on it in this process, and snapshots made by hand. */
export interface CounterSite {
  readonly directory: TemporaryDirectory;
  readonly configPath: string;
  readonly guest: CounterGuest;
  readonly context: ServiceContext;
  readonly warnings: readonly string[];
  document(): Promise<DomainSnapshots>;
  snapshot(name: string): Promise<DomainSnapshot>;
  /** Of the guest's RAM and disks at one moment, by raw QMP; the guest goes on as before. Returns its count at that moment, or one less. */
  takeSnapshot(
    name: string,
    options?: { readonly diskOnly?: boolean; readonly paused?: boolean },
  ): Promise<number>;
  /** What the QEMU that listens on the agent's socket says. */
  status(): Promise<string>;
  /** What is on the disk of that target now, as the guest has counted. */
  diskCount(target: string): Promise<number>;
  /** Pids of living QEMUs whose arguments name this site. */
  machines(): Promise<number[]>;
  /** Files beside the configuration whose presence a revert may change. */
  files(): Promise<string[]>;
}

export async function startCounterSite(): Promise<CounterSite> {
  const directory = await temporaryDirectory();
  const disks: TestDisk[] = [
    { target: "vda", path: directory.file("vda.qcow2"), format: "qcow2" },
    { target: "vdb", path: directory.file("vdb.raw"), format: "raw" },
  ];
  for (const { path, format } of disks) await createImage(path, 32 * MIB, { format });
  // What a revert starts outlives this process on purpose.
  untilTestEnds({ [Symbol.asyncDispose]: () => endMachines(directory.path) });
  const extraArguments = ["-pidfile", directory.file("pid"), ...EXTRA_DEVICE];
  const guest = untilTestEnds(
    await CounterGuest.boot({
      directory: directory.path,
      name: "vm",
      disks,
      tickSeconds: 0.4,
      extraArguments,
    }),
  );
  const configPath = await writeConfig(directory.path, {
    domains: [{ name: DOMAIN, qmp: guest.vm.qmpPath }],
    more: { runtimeDir: directory.file("run") },
  });
  const warnings: string[] = [];
  const note = (_: object, message: string): void => void warnings.push(message);
  const log: Logger = { debug: () => undefined, info: () => undefined, warn: note };
  const context = await startAgent(parseConfig(await readFile(configPath, "utf8"), configPath), log);
  const document = () => context.domainSnapshots.read(DOMAIN);
  return {
    ...{ directory, configPath, guest, context, warnings, document },
    async snapshot(name) {
      const found = findSnapshot(await document(), name);
      if (found === undefined) throw new Error(`Expected a snapshot ${name}`);
      return found;
    },
    takeSnapshot: (name, options = {}) => takeSnapshot({ directory, guest, context, disks }, name, options),
    status: () => statusAt(guest.vm.qmpPath),
    async diskCount(target) {
      const layers = (await document()).layers.find((each) => each.target === target);
      const read = ["-U", "-r", "-f", layers?.format ?? "raw", "-c", "read -v 1M 32", layers?.active ?? ""];
      const { stdout } = await promisify(execFile)("qemu-io", read);
      // qemu-io shows what is neither letter nor digit as a dot.
      return Number(/count\.(\d+)/.exec(stdout)?.[1] ?? NaN);
    },
    machines: () => machinesOf(directory.path),
    files: async () => {
      const names = await readdir(directory.path, { recursive: true });
      return names
        .filter(
          (name) => !/lock$|^(state\/(machines|domains|operations$|operations\/vm$)|run|scratch)/.test(name),
        )
        .toSorted();
    },
  };
}

interface Parts {
  readonly directory: TemporaryDirectory;
  readonly guest: CounterGuest;
  readonly context: ServiceContext;
  readonly disks: readonly TestDisk[];
}

async function takeSnapshot(
  { directory, guest, context, disks }: Parts,
  name: string,
  { diskOnly = false, paused = false }: { readonly diskOnly?: boolean; readonly paused?: boolean },
): Promise<number> {
  const { vm, counter } = guest;
  const before = await context.domainSnapshots.read(DOMAIN);
  const activeOf = (target: string) => before.layers.find((layers) => layers.target === target);
  const machine = await context.machines.open(DOMAIN);
  const facts = await machine?.facts();
  await machine?.close();
  if (machine === undefined || facts === undefined) throw new Error("Expected a running QEMU");
  const store = await context.domainSnapshots.directory(DOMAIN);
  const overlays = disks.map(({ target }) => join(store, `${target}-${name}.qcow2`));
  const bases = disks.map(({ target, path, format }) => {
    const layers = activeOf(target);
    return layers === undefined ? { file: path, format } : { file: layers.active, format: "qcow2" as const };
  });
  for (const [index, overlay] of overlays.entries()) {
    const base = bases[index];
    await qemuImg(
      "create",
      "-q",
      "-f",
      "qcow2",
      "-u",
      "-F",
      base?.format ?? "",
      "-b",
      base?.file ?? "",
      overlay,
      String(32 * MIB),
    );
  }
  const memory = directory.file(`${name}.save`);
  // Just after a turn: the guest compares RAM with its disks before it writes to them again.
  await counter.waitTurns(1);
  await vm.qmp("stop");
  const count = counter.count();
  if (!diskOnly) {
    await vm.qmp("migrate", { uri: `exec:cat > ${memory}` });
    while (((await vm.qmp("query-migrate")) as { status: string }).status !== "completed");
    while (((await vm.qmp("query-status")) as { status: string }).status !== "postmigrate");
  }
  const nodes = await Promise.all(disks.map(({ target }) => activeNode(guest, target)));
  for (const [index, overlay] of overlays.entries()) {
    const { target } = disks[index] ?? { target: "" };
    const file = { driver: "file", filename: overlay };
    await vm.qmp("blockdev-add", { driver: "qcow2", "node-name": `${target}-${name}`, backing: null, file });
  }
  const actions = disks.map(({ target }, index) => ({
    type: "blockdev-snapshot",
    data: { node: nodes[index] ?? "", overlay: `${target}-${name}` },
  }));
  await vm.qmp("transaction", { actions });
  if (!paused) await vm.qmp("cont");
  const snapshot: DomainSnapshot = {
    ...{ name, description: "", timeMs: Date.now(), state: paused ? "paused" : "running", kind: "external" },
    ...(before.current === undefined ? {} : { parent: before.current }),
    ...{ live: false, pausedMs: 0, clones: [] },
    ...(diskOnly
      ? { consistency: "crash" as const }
      : {
          memory: { kind: "external" as const, file: memory, ...(await digest(memory)) },
          machine: { ...facts, arguments: machine.process.arguments },
        }),
    disks: disks.map(({ target }, index) => ({
      target,
      file: bases[index]?.file ?? "",
      format: bases[index]?.format ?? "raw",
      sizeBytes: 32 * MIB,
      bitmaps: [],
    })),
  };
  await context.domainSnapshots.write({
    ...before,
    current: name,
    layers: disks.map(({ target, path }, index) => ({
      target,
      home: path,
      active: overlays[index] ?? "",
      format: "qcow2",
    })),
    snapshots: [...before.snapshots, snapshot],
  });
  return count;
}

async function activeNode({ vm }: CounterGuest, target: string): Promise<string> {
  const devices = (await vm.qmp("query-block")) as { qdev?: string; inserted?: { "node-name": string } }[];
  const device = devices.find(({ qdev }) => qdev?.includes(`/${target}/`));
  return device?.inserted?.["node-name"] ?? "";
}

async function digest(path: string): Promise<{ sizeBytes: number; sha256: string }> {
  const { size } = await stat(path);
  return {
    sizeBytes: size,
    sha256: createHash("sha256")
      .update(await readFile(path))
      .digest("hex"),
  };
}

export async function statusAt(qmpPath: string): Promise<string> {
  const monitor = await Monitor.connect(qmpPath, AbortSignal.timeout(60_000));
  try {
    return ((await monitor.execute("query-status")) as { status: string }).status;
  } finally {
    monitor.close();
  }
}

export async function machinesOf(directory: string): Promise<number[]> {
  const found: number[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const args = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (args.startsWith("qemu-system-") && args.includes(`${directory}/`)) found.push(Number(pid));
  }
  return found;
}

export async function endMachines(directory: string): Promise<void> {
  for (const pid of await machinesOf(directory)) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has just ended.
    }
  }
  while ((await machinesOf(directory)).length > 0) await new Promise((resolve) => setTimeout(resolve, 10));
}
