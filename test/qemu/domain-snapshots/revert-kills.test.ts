import { describe, expect, it } from "vitest";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { recoverAll } from "../../../src/services/recovery.js";
import { printFigure } from "../../faults/support/figures.js";
import { endMachines, machinesOf } from "../../support/machines-of.js";
import { ALL_FAULTS } from "../../support/sample.js";
import { Scene } from "./scene.js";
import { statusAt } from "./support/counter-site.js";
import { expectSound, expectStable, type Operation, REVERT } from "./support/operations.js";
import { steppedContext } from "./support/stepped-context.js";
import { TARGETS } from "./support/scene-model.js";

interface Kill {
  readonly victim: "old" | "new";
  /** The old one ends before the new one starts. */
  readonly quitFirst: boolean;
}

const KILLS: readonly Kill[] = [
  { victim: "old", quitFirst: false },
  { victim: "new", quitFirst: false },
  { victim: "old", quitFirst: true },
  { victim: "new", quitFirst: true },
];

/** Kills all QEMUs of the scene but one, or that one. True if there was one to kill. */
async function killMachine(scene: Scene, oldPid: number, { victim }: Kill): Promise<boolean> {
  const pids = (await machinesOf(scene.directory.path)).filter(
    (pid) => (pid === oldPid) === (victim === "old"),
  );
  for (const pid of pids) process.kill(pid, "SIGKILL");
  return pids.length > 0;
}

interface Attempt {
  readonly hasKilled: boolean;
  readonly isOver: boolean;
}

/** Odd moments are after a write, even ones before it. */
async function revertAndKill(kill: Kill, at: number): Promise<Attempt> {
  await using scene = await Scene.create({ running: true });
  await using _machines = { [Symbol.asyncDispose]: () => endMachines(scene.directory.path) };
  await REVERT.prepare(scene);
  for (const target of TARGETS) await scene.vm?.guestFlush(target);
  const oldPid = scene.vm?.pid ?? 0;
  const { quitFirst } = kill;
  const operation: Operation = {
    ...REVERT,
    run: (context) => revertDomainSnapshot(context, { domain: "vm", name: "s", quitFirst }),
  };
  let moments = 0;
  let hasKilled = false;
  const pass = async (): Promise<void> => {
    if (++moments === at) hasKilled = await killMachine(scene, oldPid, kill);
  };
  const { context } = steppedContext(scene.context, async (_, action) => {
    await pass();
    const result = await action();
    await pass();
    return result;
  });
  const [outcome] = await Promise.allSettled([operation.run(context, scene)]);
  expectStable(outcome);
  await recoverAll(scene.context);
  await expectUsable(operation, scene);
  return { hasKilled, isOver: moments < at };
}

/** With the old state or the reverted one, running or not. */
async function expectUsable(operation: Operation, scene: Scene): Promise<void> {
  const machines = await machinesOf(scene.directory.path);
  expect(machines.length).toBeLessThanOrEqual(1);
  const isRunning = machines.length > 0;
  if (isRunning) expect(await statusAt(scene.directory.file("vm.qmp"))).toBe("running");
  else scene.vm = undefined;
  const isReverted = (await scene.document()).snapshots.some(({ keptByRevert }) => keptByRevert === true);
  if (!isRunning && !isReverted) await scene.start();
  // A domain that is off with its disks reverted is done.
  await expectSound({ ...operation, running: isRunning || !isReverted }, scene);
}

describe("A QEMU that is killed in the midst of a revert", () => {
  it.each(ALL_FAULTS ? KILLS : KILLS.slice(1, 2))(
    "leaves the old state or the reverted one: the $victim one, quit first: $quitFirst",
    async (kill) => {
      let kills = 0;
      // The new one, just after the record says that the revert is decided.
      if (!ALL_FAULTS) {
        expect(await revertAndKill(kill, 14)).toEqual({ hasKilled: true, isOver: false });
        return;
      }
      for (let at = 1; ; at++) {
        const { hasKilled, isOver } = await revertAndKill(kill, at);
        if (isOver) break;
        if (hasKilled) kills++;
      }
      expect(kills).toBeGreaterThan(3);
      const how = kill.quitFirst ? "revert, quit first" : "revert";
      printFigure(`kill -9 of the ${kill.victim} QEMU: ${how}`, "before and after each write", kills);
    },
  );
});
