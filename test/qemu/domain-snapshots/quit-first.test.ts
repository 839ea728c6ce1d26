import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { type AddressInfo, connect, createServer } from "node:net";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { startAgent } from "../../../src/agent.js";
import { parseConfig } from "../../../src/model/config.js";
import type { DomainSnapshots } from "../../../src/model/domain-snapshot.js";
import type { Machines } from "../../../src/ports/machines.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { recoverAll } from "../../../src/services/recovery.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { BoundProcess } from "../../support/bound-process.js";
import { domainConfig, writeConfig } from "../../support/config-file.js";
import { createImage, fillImage } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { endMachines, machinesOf } from "../../support/machines-of.js";
import { TestVm } from "../../support/vm.js";
import { blocksOf } from "./support/disk-content.js";
import { statusAt } from "./support/counter-site.js";
import { ALL_FAULTS } from "../../support/sample.js";

const preload = fileURLToPath(new URL("../../faults/support/steps.mjs", import.meta.url));
const script = fileURLToPath(new URL("support/revert-command.ts", import.meta.url));

const JOURNAL = String.raw`^(rename|rm) \S+/state/operations/\S+\.json$`;
const STEPS = String.raw`^(rename |link |unlink |rm \S+/state/operations|spawn (qemu-img create|qemu-system)|qmp (stop|cont|migrate-incoming))`;

const THEN = 0x11;
const NOW = 0x22;
const request = { domain: "vm", name: "s1", quitFirst: true };

interface Site {
  readonly configPath: string;
  readonly context: ServiceContext;
  readonly warnings: readonly string[];
  readonly port: number;
  readonly pid: number;
  machines(): Promise<number[]>;
  /** Files and first bytes of the disks, as they are now. */
  present(): Promise<readonly (readonly [string, number])[]>;
  status(): Promise<string>;
  document(): Promise<DomainSnapshots>;
}

/** A QEMU that listens on a TCP port, with a snapshot of it and disks that have changed since. */
async function startSite(): Promise<Site> {
  const directory = await temporaryDirectory();
  const disks = [
    { target: "vda", path: directory.file("vda.qcow2"), format: "qcow2" as const },
    { target: "vdb", path: directory.file("vdb.raw"), format: "raw" as const },
  ];
  for (const { path, format } of disks) {
    await createImage(path, 1 << 20, { format });
    await fillImage(path, format, { offset: 0, length: 65_536, pattern: THEN });
  }
  const port = await freePort();
  // What a revert starts outlives this process on purpose.
  untilTestEnds({ [Symbol.asyncDispose]: () => endMachines(directory.path) });
  const serial = `tcp:127.0.0.1:${port},server=on,wait=off`;
  const vm = untilTestEnds(
    await TestVm.start({ directory: directory.path, disks, extraArguments: ["-serial", serial] }),
  );
  const configPath = await writeConfig(directory.path, {
    domains: [domainConfig("vm", vm)],
    more: { runtimeDir: directory.file("run") },
  });
  const warnings: string[] = [];
  const nothing = (): void => undefined;
  const warn = (_: object, message: string): void => void warnings.push(message);
  const config = parseConfig(await readFile(configPath, "utf8"), configPath);
  const context = await startAgent(config, { debug: nothing, info: nothing, warn });
  await createDomainSnapshot(context, { domain: "vm", name: "s1" });
  for (const { target } of disks) {
    expect((await vm.guestWrite(target, 0, 65_536, NOW)).ok).toBe(true);
    await vm.guestFlush(target);
  }
  const document = () => context.domainSnapshots.read("vm");
  return {
    ...{ configPath, context, warnings, port, pid: vm.pid, document },
    machines: () => machinesOf(directory.path),
    status: () => statusAt(vm.qmpPath),
    present: async () => {
      const { layers } = await document();
      return Promise.all(
        layers.map(
          async ({ active, format }) => [active, (await blocksOf(active, format))[0] ?? -1] as const,
        ),
      );
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

async function expectListening(port: number): Promise<void> {
  const socket = connect(port, "127.0.0.1");
  await once(socket, "connect");
  socket.destroy();
}

function startingBy(machines: Machines, start: Machines["start"]): Machines {
  return {
    settings: (domain) => machines.settings(domain),
    open: (domain, signal) => machines.open(domain, signal),
    find: (domain, args) => machines.find(domain, args),
    setAside: (moved) => machines.setAside(moved),
    end: (process, moved) => machines.end(process, moved),
    start,
  };
}

describe("A revert that ends the present QEMU first", () => {
  it("can have its ports, and is refused without that wish", async () => {
    const site = await startSite();
    await expect(revertDomainSnapshot(site.context, { ...request, quitFirst: false })).rejects.toMatchObject({
      code: "UNSUPPORTED",
      message: expect.stringMatching(/quit-first.*-serial tcp:/) as unknown,
    });
    expect(await site.machines()).toEqual([site.pid]);
    const before = await site.present();
    const { pid, keptAs, state } = await revertDomainSnapshot(site.context, request);
    expect(state).toBe("running");
    expect(await site.machines()).toEqual([pid]);
    expect(await site.status()).toBe("running");
    await expectListening(site.port);
    expect((await site.present()).map(([, first]) => first)).toEqual([THEN, THEN]);
    const kept = (await site.document()).snapshots.find(({ name }) => name === keptAs);
    expect(kept?.disks.map(({ file }) => file)).toEqual(before.map(([file]) => file));
    expect(await site.context.store.operations()).toEqual([]);
  });

  it("starts the domain anew on its present disks when the memory cannot be loaded", async () => {
    const site = await startSite();
    const before = await site.present();
    // A damaged image would have been found before: so the new QEMU is killed.
    const started: number[] = [];
    const machinesOfContext = site.context.machines;
    const context = {
      ...site.context,
      machines: startingBy(machinesOfContext, async (start, signal) => {
        const machine = await machinesOfContext.start(start, signal);
        started.push(machine.process.pid);
        return machine;
      }),
    };
    const onProgress = ({ phase }: { readonly phase: string }): void => {
      if (phase === "loading") for (const pid of started) process.kill(pid, "SIGKILL");
    };
    await expect(revertDomainSnapshot(context, request, { onProgress })).rejects.toMatchObject({
      code: "MEMORY_LOAD_FAILED",
      message: expect.stringContaining("has been started anew on its present disks") as unknown,
    });
    expect(started).toHaveLength(2);
    expect(await site.machines()).toEqual(started.slice(1));
    expect(await site.status()).toBe("running");
    await expectListening(site.port);
    expect(await site.present()).toEqual(before);
    expect(before.map(([, first]) => first)).toEqual([NOW, NOW]);
    expect(site.warnings.join()).toContain("what the guest had in memory is lost");
    expect(await site.context.store.operations()).toEqual([]);
    // And from there it can be reverted.
    await revertDomainSnapshot(site.context, request);
    expect((await site.present()).map(([, first]) => first)).toEqual([THEN, THEN]);
  });

  it("leaves the domain off, and its disks as they are, when no QEMU can be started", async () => {
    const site = await startSite();
    const before = await site.present();
    const failing = () => Promise.reject(new FleeceError("QEMU_FAILED", "No QEMU today"));
    const context = { ...site.context, machines: startingBy(site.context.machines, failing) };
    await expect(revertDomainSnapshot(context, request)).rejects.toMatchObject({
      code: "QEMU_FAILED",
      message: expect.stringContaining("stays off: No QEMU today") as unknown,
    });
    expect(await site.machines()).toEqual([]);
    expect(await site.present()).toEqual(before);
    expect(await site.context.store.operations()).toEqual([]);
  });
});

interface Kill {
  readonly match: string;
  readonly at: number;
  readonly when: "before" | "after";
}

/** False if the revert came to its end. */
async function killOnce(site: Site, kill: Kill): Promise<string | undefined> {
  const [before] = await site.machines();
  const present = await site.present();
  const steps = { ...kill, action: "kill", log: `${site.configPath}.steps` };
  const env = {
    ...process.env,
    NODE_OPTIONS: `--import ${preload}`,
    FLEECE_TEST_STEPS: JSON.stringify(steps),
  };
  const args = ["--conditions=source", "--import", "tsx", script, site.configPath, "vm", "s1", "quit-first"];
  const command = await BoundProcess.start(process.execPath, args, { env });
  const end = await command.ended;
  const [record] = await site.context.store.operations("vm");
  const phase = record?.subject.kind === "domain-snapshot-revert" ? record.subject.phase : "none";
  await recoverAll(site.context);
  const what = `${JSON.stringify(kill)} in ${phase}`;
  expect(await site.context.store.operations("vm"), what).toEqual([]);
  const machines = await site.machines();
  expect(machines, what).toHaveLength(1);
  expect(await site.status(), what).toBe("running");
  await expectListening(site.port);
  const after = await site.present();
  if (phase === "switched")
    expect(
      after.map(([, first]) => first),
      what,
    ).toEqual([THEN, THEN]);
  else if (phase !== "none") expect(after, what).toEqual(present);
  if (phase !== "none") expect(machines[0] === before, what).toBe(phase === "preparing");
  if (end.signal === "SIGKILL") return phase;
  expect(end.exitCode, command.stderr).toBe(0);
  return undefined;
}

describe("An agent that is killed while it reverts and ends the present QEMU first", () => {
  it("leaves one QEMU: the present one, the present started anew, or the snapshot", async () => {
    const site = await startSite();
    if (!ALL_FAULTS) {
      const load = { match: "^qmp migrate-incoming$", at: 1, when: "before" } as const;
      expect(await killOnce(site, load)).toBe("quitting");
      return;
    }
    const phases = new Set<string>();
    for (const kind of [
      { match: JOURNAL, when: "after" },
      { match: STEPS, when: "before" },
    ] as const) {
      for (let at = 1; ; at++) {
        const phase = await killOnce(site, { ...kind, at });
        if (phase === undefined) break;
        phases.add(phase);
      }
    }
    expect([...phases].toSorted()).toEqual(expect.arrayContaining(["preparing", "quitting", "switched"]));
  }, 3_600_000);
});
