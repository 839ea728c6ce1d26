import { readdir } from "node:fs/promises";
import { expect } from "vitest";
import { printFigure } from "./figures.js";
import { Scene } from "./scene.js";
import type { SiteOptions } from "../../support/site.js";
import { CHANGES, type FaultyCommand, JOURNAL, startWithFault, type StepFault } from "./steps.js";
import { ALL_FAULTS } from "../../support/sample.js";

export interface Scenario {
  /** As the table in README.md calls it. */
  readonly name: string;
  readonly disks: number;
  /** The domain has no process while the command runs. */
  readonly inactive?: boolean;
  /** What must be there before the command; resolves with the command's arguments. */
  readonly prepare: (scene: Scene) => Promise<readonly string[]>;
  /** Of the domain and of scratch space; default: as the program has them. */
  readonly site?: Omit<SiteOptions, "disks">;
  /** Run in place of the command. */
  readonly script?: string;
  /** A command that ends only when it is told to: what it prints when that may be done. */
  readonly endsOnTerm?: RegExp;
}

/** After so many kills a fresh VM: chains and histories would become long, and with them every check. */
const KILLS_PER_SCENE = 8;

/** In a scene's directory; not all scenarios make it. */
export const CALLERS_DIRECTORY = "callers";

/** Far more than the guard of a held guest needs. */
const GUARD_MS = 20_000;

const MOMENTS = { before: "before a change", after: "after a write of the journal" };

/**
 * Kills the command at every step that changes something, just before it, and at every write of the journal just after it
 * too. Steps are counted up until the command comes to its end by itself, so none is left out.
 */
export async function killAtEveryStep(scenario: Scenario): Promise<void> {
  const scene = await sceneFor(scenario);
  const steps = await listSteps(scene, scenario);
  const writes = steps.filter((step) => JOURNAL.test(step));
  if (!ALL_FAULTS) {
    // In the midst; of every second operation, after its journal has been written.
    const after = steps.length % 2 === 1 && writes.length > 0;
    const [match, when, count] = after
      ? ([JOURNAL, "after", writes.length] as const)
      : ([CHANGES, "before", steps.length] as const);
    const fault = { match, when, at: Math.ceil(count / 2), action: "kill" } as const;
    expect(await killOnce(scene, scenario, fault)).toBe(true);
    printFigure(`agent: ${scenario.name}`, MOMENTS[when], 1);
    return;
  }
  await killFromFirst(scenario, JOURNAL, "after", writes.length);
  await killFromFirst(scenario, CHANGES, "before", steps.length);
}

async function killFromFirst(
  scenario: Scenario,
  match: RegExp,
  when: StepFault["when"],
  steps: number,
): Promise<void> {
  let killed = true;
  let at = 1;
  while (killed) {
    const scene = await sceneFor(scenario);
    for (let turn = 0; turn < KILLS_PER_SCENE; turn++) {
      killed = await killOnce(scene, scenario, { match, at, when, action: "kill" });
      if (!killed) break;
      at++;
    }
    await scene.expectVerified();
    await scene.at.vm[Symbol.asyncDispose]();
  }
  printFigure(`agent: ${scenario.name}`, MOMENTS[when], at - 1);
  expect(at - 1, `kills of ${scenario.name}, ${when} each step`).toBe(steps);
}

async function sceneFor(scenario: Scenario): Promise<Scene> {
  const scene = await Scene.start(scenario.disks, scenario.site);
  await scene.backUp();
  return scene;
}

async function listSteps(scene: Scene, scenario: Scenario): Promise<readonly string[]> {
  const args = await prepared(scene, scenario);
  const command = await startWithFault(scene.at, args, { match: CHANGES }, scenario);
  await untilEnd(scene, scenario, command);
  const result = await command.process.result();
  expect(result.exitCode, result.stderr).toBe(0);
  if (!scene.at.vm.running) await scene.at.vm.restart();
  await settle(scene, true);
  await scene.expectSound();
  return command.steps();
}

async function prepared(scene: Scene, { prepare, inactive }: Scenario): Promise<readonly string[]> {
  await scene.touch();
  const args = await prepare(scene);
  if (scene.at.vm.running) await scene.touch();
  if (inactive === true && scene.at.vm.running) await scene.at.vm.quit();
  scene.mark();
  return args;
}

/** One kill and everything that must be true then. False if the command ended before its step. */
async function killOnce(scene: Scene, scenario: Scenario, fault: StepFault): Promise<boolean> {
  const { at } = scene;
  const args = await prepared(scene, scenario);
  const command = await startWithFault(at, args, fault, scenario);
  await untilEnd(scene, scenario, command);
  const { signal, exitCode, stderr } = await command.process.result();
  expect({ signal, exitCode }, stderr).toEqual(
    signal === null ? { signal: null, exitCode: 0 } : { signal: "SIGKILL", exitCode: null },
  );
  if (scenario.inactive === true) await at.vm.restart();
  // What the guest's driver sees. A guest whose CPUs were held runs on before any command of fleece: the guard's work.
  await scene.touch();
  await expect.poll(() => scene.status(), { timeout: GUARD_MS }).toBe("running");
  if (scenario.inactive === true && fault.at % 2 === 1) await at.vm.quit();
  await settle(scene, fault.at % 2 === 0);
  await scene.expectClean({ olderMayRecord: scenario.inactive === true, deletedMayRemain: true });
  await expectNoStrangeFiles(scene);
  if (!at.vm.running) await at.vm.restart();
  await scene.touch();
  const next = await scene.backUp();
  expect(next.level, next.reason).toBe("INCREMENTAL");
  await scene.expectClean();
  return signal !== null;
}

/** The guest writes all the time, and is told every time that it went well. */
async function untilEnd(
  scene: Scene,
  { inactive, endsOnTerm }: Scenario,
  { process }: FaultyCommand,
): Promise<void> {
  let told = false;
  while (process.running) {
    if (inactive === true) await Promise.race([process.result(), tick()]);
    else await Promise.all([scene.touch(), tick()]);
    if (told || endsOnTerm === undefined || !endsOnTerm.test(process.stdout)) continue;
    told = true;
    globalThis.process.kill(process.pid, "SIGTERM");
  }
}

/** The next command, which puts things in order; a block snapshot that is open after the kill is a promise kept: its owner can still end it either way. */
async function settle(scene: Scene, success: boolean): Promise<void> {
  const { snapshots } = await scene.at.json<{ snapshots?: { name: string }[] }>(
    ...["block-snapshot", "list", "vm"],
  );
  for (const { name } of snapshots ?? []) {
    const outcome = success && scene.at.vm.running ? [] : ["--failed"];
    const result = await scene.at.run("block-snapshot", "delete", "vm", name, ...outcome);
    // A domain that was started since is a moment lost, which the owner is told.
    if (result.exitCode !== 0)
      expect(result.stderr).toMatch(/\((SNAPSHOT_BROKEN|DISK_CHANGED|DISK_IN_USE)\)/);
  }
}

/** Half a restore, or a scratch file in a directory of the caller's. */
async function expectNoStrangeFiles({ at }: Scene): Promise<void> {
  const names = await readdir(at.directory.path);
  expect(names.filter((name) => name.includes(".partial-"))).toEqual([]);
  expect(await readdir(at.directory.file(CALLERS_DIRECTORY)).catch(() => [])).toEqual([]);
}

function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 20));
}
