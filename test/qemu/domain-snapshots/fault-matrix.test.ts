import { describe, expect, it } from "vitest";
import { FleeceError } from "../../../src/shared/errors.js";
import { printFigure } from "../../faults/support/figures.js";
import { endMachines } from "../../support/machines-of.js";
import { refusing } from "../../support/refused-commands.js";
import type { Scene } from "./scene.js";
import { statusAt } from "./support/counter-site.js";
import {
  expectSound,
  expectStable,
  internalRevert,
  type Operation,
  OPERATIONS,
  REVERT,
  sceneOf,
} from "./support/operations.js";
import { MortalProcess, steppedContext } from "./support/stepped-context.js";
import { ALL_FAULTS } from "../../support/sample.js";

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
