import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import type { CreateDomainSnapshotRequest } from "../../../src/model/domain-snapshot.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { gatherCheckpoints } from "../../../src/services/checkpoints.js";
import { cloneDomainSnapshot } from "../../../src/services/domain-snapshots/clone.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { recoverAll } from "../../../src/services/recovery.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { printFigure } from "../../faults/support/figures.js";
import { endMachines, machinesOf } from "../../support/machines-of.js";
import { refusing } from "../../support/refused-commands.js";
import type { DiskFormat } from "../../support/vm-arguments.js";
import { makeRow, Scene } from "./scene.js";
import { TARGETS } from "./support/scene-model.js";
import { statusAt } from "./support/counter-site.js";
import { expectNothingLeft } from "./support/leftovers.js";
import { MortalProcess, steppedContext } from "./support/stepped-context.js";
import { ALL_FAULTS } from "../../support/sample.js";

interface Operation {
  readonly name: string;
  readonly running: boolean;
  /** Of the first disk's image. */
  readonly format?: DiskFormat;
  readonly prepare: (scene: Scene) => Promise<void>;
  readonly run: (context: ServiceContext, scene: Scene) => Promise<unknown>;
  /** Whether it is done, by the document; the model then knows of it. */
  readonly isDone: (scene: Scene) => Promise<boolean>;
  /** The QMP command at which `npm test` lets it fail. */
  readonly sample?: string;
}

const domain = "vm";

async function writeSome(scene: Scene, pattern: number): Promise<void> {
  for (const target of TARGETS) await scene.write(target, 2, 5, pattern);
}

function creation(
  what: string,
  request: Omit<CreateDomainSnapshotRequest, "domain">,
  sample: string,
  format: DiskFormat = "qcow2",
): Operation {
  return {
    ...{ name: `create, ${what}`, running: true, sample, format },
    prepare: async (scene) => {
      await writeSome(scene, 31);
      await scene.checkpoint("cp");
      await writeSome(scene, 32);
    },
    run: (context) => createDomainSnapshot(context, { domain, name: "s", ...request }),
    isDone: async (scene) => {
      const isThere = (await scene.document()).snapshots.length > 0;
      if (isThere) scene.model.remember("s");
      return isThere;
    },
  };
}

function deletion(name: string, running: boolean): Operation {
  return {
    ...{
      name: `delete of ${name}, ${running ? "running" : "inactive"} domain`,
      running,
      sample: "transaction",
    },
    prepare: makeRow,
    run: (context) => deleteDomainSnapshot(context, { domain, name }),
    isDone: async (scene) => {
      const isGone = (await scene.document()).snapshots.every((snapshot) => snapshot.name !== name);
      if (isGone) scene.model.forget(name);
      return isGone;
    },
  };
}

async function takeInternal(scene: Scene): Promise<void> {
  await writeSome(scene, 41);
  await createDomainSnapshot(scene.context, { domain, name: "a", kind: "internal" });
  scene.model.remember("a");
  await writeSome(scene, 42);
}

function internalRevert(running: boolean): Operation {
  return {
    name: `revert, internal, ${running ? "running" : "inactive"} domain`,
    running,
    ...(running ? { sample: "snapshot-load" } : {}),
    prepare: takeInternal,
    run: (context) => revertDomainSnapshot(context, { domain, name: "a" }),
    isDone: async (scene) => {
      const { snapshots, current } = await scene.document();
      for (const { name } of snapshots) if (!scene.model.names().includes(name)) scene.model.remember(name);
      if (current !== "a" || snapshots.length === 1) return false;
      scene.model.returned("a");
      return true;
    },
  };
}

const REVERT: Operation = {
  ...{ name: "revert, with memory", running: true, sample: "migrate-incoming" },
  prepare: async (scene) => {
    await writeSome(scene, 51);
    await createDomainSnapshot(scene.context, { domain, name: "s" });
    scene.model.remember("s");
    await writeSome(scene, 52);
  },
  run: (context) => revertDomainSnapshot(context, { domain, name: "s" }),
  isDone: async (scene) => {
    const { snapshots, layers } = await scene.document();
    const kept = snapshots.find(({ keptByRevert }) => keptByRevert === true);
    expect(layers.every(({ active }) => active.includes("-r1.") === (kept !== undefined))).toBe(true);
    if (kept === undefined) return false;
    scene.model.remember(kept.name);
    scene.model.returned("s");
    return true;
  },
};

const CLONE: Operation = {
  ...{ name: "clone", running: true },
  prepare: async (scene) => {
    await writeSome(scene, 61);
    await createDomainSnapshot(scene.context, { domain, name: "s" });
    scene.model.remember("s");
  },
  run: (context, scene) =>
    cloneDomainSnapshot(context, { domain, name: "s", directory: scene.directory.file("clone") }),
  isDone: async (scene) => {
    const [snapshot] = (await scene.document()).snapshots;
    const clones = snapshot?.clones.map(({ directory }) => directory) ?? [];
    expect(clones).toEqual(existsSync(scene.directory.file("clone")) ? [scene.directory.file("clone")] : []);
    expect((await readdir(scene.directory.path)).filter((name) => name.startsWith("."))).toEqual([]);
    return clones.length > 0;
  },
};

const OPERATIONS: readonly Operation[] = [
  creation("memory", {}, "stop"),
  creation("memory, live", { live: true }, "migrate"),
  creation("memory over vmdk", {}, "qom-set", "vmdk"),
  creation("disks only", { diskOnly: true }, "transaction"),
  creation("internal", { kind: "internal" }, "snapshot-save"),
  internalRevert(true),
  internalRevert(false),
  {
    ...{ name: "delete, internal", running: true, sample: "snapshot-delete" },
    prepare: takeInternal,
    run: (context) => deleteDomainSnapshot(context, { domain, name: "a" }),
    isDone: async (scene) => {
      const isGone = (await scene.document()).snapshots.length === 0;
      if (isGone) scene.model.forget("a");
      return isGone;
    },
  },
  deletion("three", true),
  deletion("two", true),
  deletion("one", true),
  deletion("three", false),
  deletion("two", false),
  REVERT,
  CLONE,
];

function sceneOf({ running, format }: Operation): Promise<Scene> {
  return Scene.create({ running, ...(format === undefined ? {} : { format }) });
}

/** One process, which runs: the product may have started another than the scene's. */
async function expectRunning(scene: Scene): Promise<void> {
  expect(await machinesOf(scene.directory.path)).toHaveLength(1);
  expect(await statusAt(scene.directory.file("vm.qmp"))).toBe("running");
}

/** From here on the model has no guest if it is another's. */
async function adoptMachine(scene: Scene): Promise<void> {
  const [pid] = await machinesOf(scene.directory.path);
  if (scene.vm === undefined || (scene.vm.running && pid === scene.vm.pid)) return;
  await endMachines(scene.directory.path);
  scene.vm = undefined;
}

async function expectCheckpointsUsable({ context }: Scene): Promise<void> {
  await using driver = await context.drivers.open(domain);
  const unusable = gatherCheckpoints(await driver.inspect()).filter(({ valid }) => !valid);
  expect(unusable).toEqual([]);
}

/** Everything that must be true after a fault, once somebody has come by; and that the operation is possible then. */
async function expectSound(operation: Operation, scene: Scene): Promise<void> {
  const { context } = scene;
  await recoverAll(context);
  if (operation.running) await expectRunning(scene);
  let isDone = await operation.isDone(scene);
  if (!isDone) {
    await scene.check();
    await expectCheckpointsUsable(scene);
    await expectNothingLeft(scene);
    await operation.run(context, scene);
    isDone = await operation.isDone(scene);
    expect(isDone).toBe(true);
    if (operation.running) await expectRunning(scene);
  }
  await adoptMachine(scene);
  await scene.check();
  await expectNothingLeft(scene);
  await writeSome(scene, 99);
  await scene.stop();
  await scene.check();
}

/** Runs the operation with one fault after the other, until a run has no step left for it. Returns how many there were. */
async function eachStep(
  operation: Operation,
  first: number,
  attempt: (scene: Scene, at: number) => Promise<boolean>,
): Promise<number> {
  for (let at = first; ; at++) {
    await using scene = await sceneOf(operation);
    await using _machines = { [Symbol.asyncDispose]: () => endMachines(scene.directory.path) };
    await operation.prepare(scene);
    const isFaulty = await attempt(scene, at);
    await expectSound(operation, scene);
    if (!isFaulty) return at - 1;
    if (!ALL_FAULTS) return 1;
  }
}

function expectStable(outcome: PromiseSettledResult<unknown>): void {
  if (outcome.status === "fulfilled") return;
  expect(outcome.reason).toBeInstanceOf(FleeceError);
  expect(outcome.reason).not.toMatchObject({ code: "INTERNAL" });
}

async function commandsOf(operation: Operation): Promise<readonly string[]> {
  await using scene = await sceneOf(operation);
  await using _machines = { [Symbol.asyncDispose]: () => endMachines(scene.directory.path) };
  await operation.prepare(scene);
  const { commands, outcome } = await refusing(0, () => operation.run(scene.context, scene));
  expect(outcome.status).toBe("fulfilled");
  return commands;
}

const sampled = OPERATIONS.filter(({ name }) => ALL_FAULTS || name === "revert, internal, running domain");

describe("QEMU refuses a command", () => {
  it.each(sampled.filter(({ sample }) => sample !== undefined))("of: $name", async (operation) => {
    const commands = await commandsOf(operation);
    const first = ALL_FAULTS ? 1 : commands.indexOf(operation.sample ?? "") + 1;
    const times = await eachStep(operation, first, async (scene, at) => {
      const { refused, outcome } = await refusing(at, () => operation.run(scene.context, scene));
      expectStable(outcome);
      // At once, before anybody else comes by.
      if (operation.running) expect(await statusAt(scene.directory.file("vm.qmp")), refused).toBe("running");
      return refused !== undefined;
    });
    printFigure(
      `QMP command refused: ${operation.name}`,
      ALL_FAULTS ? "each" : (operation.sample ?? ""),
      times,
    );
  });
});

const FULL = (["once", "from then on"] as const)
  .flatMap((how) => OPERATIONS.map((operation) => ({ how, operation, name: operation.name })))
  .filter(({ how, operation }) => ALL_FAULTS || (how === "from then on" && operation === REVERT));

describe("The state directory, or the place of the new files, is full", () => {
  it.each(FULL)("$how, in: $name", async ({ how, operation }) => {
    const first = ALL_FAULTS ? 1 : 5;
    const times = await eachStep(operation, first, async (scene, at) => {
      let writes = 0;
      const { context } = steppedContext(scene.context, async (kind, action) => {
        if (kind === "removal") return await action();
        writes++;
        const isFull = how === "once" ? writes === at : writes >= at;
        if (isFull) throw new FleeceError("NO_SPACE", "No space left on device");
        return await action();
      });
      const [outcome] = await Promise.allSettled([operation.run(context, scene)]);
      expectStable(outcome);
      if (operation.running) expect(await statusAt(scene.directory.file("vm.qmp"))).toBe("running");
      return writes >= at;
    });
    printFigure(`no space, ${how}: ${operation.name}`, "each write", times);
  });
});

const KILLED = OPERATIONS.filter(({ name }) => /clone|internal/.test(name));

describe("The agent is killed", () => {
  it.each(ALL_FAULTS ? KILLED : [internalRevert(false)])("at a write of: $name", async (operation) => {
    const first = ALL_FAULTS ? 1 : 7;
    const times = await eachStep(operation, first, async (scene, at) => {
      const process = new MortalProcess(scene.context, at);
      await Promise.race([operation.run(process.context, scene), process.died]);
      await process.buried();
      return process.writes >= at;
    });
    printFigure(`agent killed: ${operation.name}`, "before or after each write", times);
  });
});
