import { access, copyFile, cp, mkdir, readdir, rm, stat, truncate } from "node:fs/promises";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import { isIntact } from "../../src/model/backup.js";
import { listBackups } from "../../src/services/backup-catalog.js";
import { verifyBackup } from "../../src/services/backup-read.js";
import { pruneDomain } from "../../src/services/prune.js";
import { writeConfig } from "../support/config-file.js";
import { printFigure } from "./support/figures.js";
import { Scene } from "./support/scene.js";
import { startWithFault } from "./support/steps.js";
import { ALL_FAULTS } from "../support/sample.js";

/** Everything that the agent does to the names and to the durability of files of the repository. */
const STEPS = /^(rename|rm|mkdir|sync|write) \S+\/backups\b/;

interface State {
  readonly directory: string;
  /** What was done before, oldest first. */
  readonly steps: readonly string[];
}

/** Runs a command and keeps the repository as it is before each of its steps, and at the end. */
async function statesOf(scene: Scene, args: readonly string[]): Promise<State[]> {
  const { directory } = scene.at;
  const [from, to] = [directory.file("backups"), directory.file("states")];
  await mkdir(to);
  const command = await startWithFault(scene.at, args, { match: STEPS, copy: { from, to } });
  const { exitCode, stderr } = await command.process.result();
  expect(exitCode, stderr).toBe(0);
  const steps = await command.steps();
  const numbers = (await readdir(to)).map(Number).toSorted((a, b) => a - b);
  expect(numbers).toEqual(steps.map((_step, index) => index + 1));
  const states = numbers.map((number) => ({
    directory: path.join(to, String(number)),
    steps: steps.slice(0, number - 1),
  }));
  return [...states, { directory: from, steps }];
}

/** Where a file of a draft is once the draft has its final name. */
function finalPath(name: string): string {
  return name.replace("/.partial-", "/");
}

/**
 * What a power loss may take on top: the content of each file that was not made durable after its last write by the agent,
 * and all of a directory whose names were not. Files that were there before the command are durable.
 */
async function loseUnsynced({ directory, steps }: State, before: ReadonlySet<string>): Promise<void> {
  const durable = new Set<string>();
  for (const step of steps) {
    const [verb = "", name = ""] = step.split(" ");
    const place = path.relative("backups", finalPath(name.slice(name.indexOf("/backups") + 1)));
    if (verb === "sync") durable.add(place);
    else if (verb === "write") durable.delete(place);
  }
  for (const name of await readdir(directory, { recursive: true })) {
    const place = finalPath(`/${name}`).slice(1);
    const file = path.join(directory, name);
    if (before.has(name) || !(await stat(file)).isFile()) continue;
    if (!durable.has(place) || !durable.has(path.dirname(place))) await truncate(file, 0);
  }
}

async function filesOf(directory: string): Promise<ReadonlySet<string>> {
  return new Set(await readdir(directory, { recursive: true }));
}

/** What of a file is durable: its content, and that it has its name. */
interface Durability {
  content: boolean;
  name: boolean;
}

/**
 * The same for a merge, which also changes files that were there: what was not made durable is as it was before the command,
 * where it was before.
 */
async function undoUnsynced({ directory, steps }: State, pristine: string, pair: MergedPair): Promise<void> {
  const [older, younger] = [pair.older, pair.younger].map((id) => `vm/${id}/vda.qcow2`) as [string, string];
  const before = await filesOf(pristine);
  // The storage daemon writes to this one, which is no step.
  const files = new Map<string, Durability>([[older, { content: false, name: true }]]);
  for (const step of steps) {
    const [verb = "", name = ""] = step.split(" ");
    const place = name.slice(name.indexOf("/backups/") + "/backups/".length);
    const known = files.get(place);
    if (verb === "write") files.set(place, { content: false, name: known?.name ?? before.has(place) });
    if (verb === "sync" && known !== undefined) known.content = true;
    if (verb === "sync") {
      for (const [file, durability] of files) if (path.dirname(file) === place) durability.name = true;
    }
    if (verb === "rename") {
      const from = place === younger ? older : `${place}.new`;
      files.set(place, { content: files.get(from)?.content ?? false, name: false });
      files.delete(from);
    }
  }
  for (const [file, { content, name }] of files) {
    const [found, wasThere] = [path.join(directory, file), path.join(pristine, file)];
    if (!(await isFile(found))) continue;
    if (file === younger) {
      if (!content) await copyFile(path.join(pristine, older), found);
      if (name) continue;
      await cp(found, path.join(directory, older));
      await copyFile(wasThere, found);
    } else if (!(name && content)) {
      if (before.has(file)) await copyFile(wasThere, found);
      else await (name ? truncate(found, 0) : rm(found));
    }
  }
}

interface MergedPair {
  readonly older: string;
  readonly younger: string;
}

async function isFile(name: string): Promise<boolean> {
  return (await stat(name).catch(() => undefined))?.isFile() ?? false;
}

/** What was begun is finished, too, if it `finishes`. Resolves with the ids of what is listed. */
async function expectAllVerify(scene: Scene, repository: string, finishes = false): Promise<string[]> {
  const { directory, vm } = scene.at;
  const home = directory.file("after-loss");
  const configPath = await writeConfig(home, {
    stateDir: path.join(home, "state"),
    scratchDir: directory.file("scratch"),
    domains: [{ name: "vm", qmp: vm.qmpPath }],
    repositories: [{ name: "default", path: repository }],
    more: { runtimeDir: directory.file("run") },
  });
  const ignore = (): void => undefined;
  const context = await startAgent(await loadConfig(configPath), {
    debug: ignore,
    info: ignore,
    warn: ignore,
  });
  if (finishes) expect(await pruneDomain(context, "vm")).toEqual([]);
  const backups = await listBackups(context);
  expect(backups.filter((entry) => !isIntact(entry))).toEqual([]);
  for (const { id } of backups) await verifyBackup(context, id);
  return backups.map(({ id }) => id);
}

async function expectEveryStateSound(scene: Scene, args: readonly string[], keeps: string): Promise<number> {
  const before = await filesOf(scene.at.directory.file("backups"));
  const states = await statesOf(scene, args);
  // In a sample every fifth, and the last ones, where the backup appears.
  const chosen = states.filter(
    (_state, index) => ALL_FAULTS || index % 5 === 0 || index >= states.length - 4,
  );
  for (const state of chosen) {
    expect(await expectAllVerify(scene, state.directory)).toContain(keeps);
    // The last state is the repository itself: the command has ended, so nothing may be lost.
    await loseUnsynced(state, before);
    expect(await expectAllVerify(scene, state.directory)).toContain(keeps);
  }
  return chosen.length;
}

describe("Loss of power while the repository is written: all that is listed verifies", () => {
  it("at every step of a backup of two disks, also if everything is lost that was not made durable", async () => {
    const scene = await Scene.start(2);
    const { id } = await scene.backUp();
    await scene.touch();
    scene.mark();
    const states = await expectEveryStateSound(scene, ["backup", "run", "vm"], id);
    expect(await expectAllVerify(scene, scene.at.directory.file("backups"))).toHaveLength(2);
    printFigure(
      "loss of power: backup run",
      "before each step in the repository, with and without lost writes",
      states,
    );
  });

  it("at every step of a merge, also if everything is as before that was not made durable", async () => {
    const scene = await Scene.start(1);
    const ids: string[] = [];
    for (let count = 0; count < 3; count++) {
      ids.push((await scene.backUp()).id);
      await scene.touch();
    }
    const [first = "", older = "", younger = ""] = ids;
    const pristine = scene.at.directory.file("pristine");
    await cp(scene.at.directory.file("backups"), pristine, { recursive: true });
    const states = await statesOf(scene, ["backup", "delete", older]);
    const rest = [first, younger];
    // One in its midst, and one near its end.
    const some = [Math.floor(states.length * 0.6), states.length - 4];
    const chosen = states.filter((_state, index) => ALL_FAULTS || some.includes(index));
    for (const state of chosen) {
      const lost = { ...state, directory: scene.at.directory.file("lost") };
      await cp(state.directory, lost.directory, { recursive: true });
      // The last state is the repository itself: the command has ended, so nothing may be lost.
      if (state !== states.at(-1)) await undoUnsynced(lost, pristine, { older, younger });
      for (const { directory } of [state, lost]) {
        const listed = await expectAllVerify(scene, directory);
        expect(listed, state.steps.at(-1)).toEqual(expect.arrayContaining(rest));
        const left = await expectAllVerify(scene, directory, true);
        expect(left, state.steps.at(-1)).toEqual(listed);
        if (!listed.includes(older)) {
          expect((await readdir(path.join(directory, "vm"))).filter((name) => !name.startsWith("."))).toEqual(
            rest.toSorted(),
          );
        }
      }
      await rm(lost.directory, { recursive: true });
    }
    expect(await expectAllVerify(scene, scene.at.directory.file("backups"))).toEqual(rest);
    printFigure(
      "loss of power: backup delete of one that another is based on",
      "before each step of the merge in the repository, with and without lost writes",
      chosen.length,
    );
  });

  it("at every step of a deletion", async () => {
    const scene = await Scene.start(1);
    const { id } = await scene.backUp();
    await scene.touch();
    const next = await scene.backUp();
    const states = await expectEveryStateSound(scene, ["backup", "delete", next.id], id);
    await expect(access(scene.at.directory.file(`backups/vm/${next.id}`))).rejects.toThrow();
    printFigure(
      "loss of power: backup delete",
      "before each step in the repository, with and without lost writes",
      states,
    );
  });
});
