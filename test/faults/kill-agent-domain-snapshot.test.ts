import { readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import type { DomainSnapshots } from "../../src/model/domain-snapshot.js";
import { noSnapshots } from "../../src/model/domain-snapshot.js";
import { runFleece } from "../support/fleece.js";
import { fileDigest } from "../support/image-tool.js";
import { startSite, type Site, type SiteDisk } from "../support/site.js";
import { printFigure } from "./support/figures.js";
import { CHANGES, JOURNAL, startWithFault, type StepFault } from "./support/steps.js";
import { ALL_FAULTS } from "../support/sample.js";

const script = fileURLToPath(new URL("support/create-domain-snapshot.mjs", import.meta.url));
const DIRECTORY = "state/domain-snapshots/vm";
const GUARD_MS = 30_000;
const MIB = 1024 * 1024;

const SIZES = { sizeBytes: 8 * MIB, filledBytes: 4 * MIB };
const OTHER: SiteDisk = { target: "vdb", format: "qcow2", ...SIZES };
const PLAIN: readonly SiteDisk[] = [{ target: "vda", format: "qcow2", ...SIZES }, OTHER];
/** QEMU has to close the first one to save memory. */
const FOREIGN: readonly SiteDisk[] = [{ target: "vda", format: "vpc", ...SIZES }, OTHER];

async function documentOf(at: Site): Promise<DomainSnapshots> {
  const text = await readFile(at.directory.file(`${DIRECTORY}/snapshots.json`), "utf8").catch(
    () => undefined,
  );
  return text === undefined ? noSnapshots("vm") : (JSON.parse(text) as DomainSnapshots);
}

async function status({ vm }: Site): Promise<string> {
  return ((await vm.qmp("query-status")) as { readonly status: string }).status;
}

/** The files that QEMU writes to, by its own word. */
async function activeFiles({ vm }: Site): Promise<readonly string[]> {
  const devices = (await vm.qmp("query-block")) as readonly {
    readonly inserted?: { readonly file: string };
  }[];
  return devices.flatMap(({ inserted }) => inserted?.file ?? []);
}

const MIGRATE = /^qmp migrate$/;

/** One kill, and everything that must be true then. False if the command ended before its step. */
async function killOnce(at: Site, fault: Omit<StepFault, "action">, name: string): Promise<boolean> {
  const command = await startWithFault(at, ["vm", name], { ...fault, action: "kill" }, { script });
  const { signal, exitCode, stderr } = await command.process.result();
  expect({ signal, exitCode }, stderr).toEqual(
    signal === null ? { signal: null, exitCode: 0 } : { signal: "SIGKILL", exitCode: null },
  );
  // The guard's work: before any other command.
  await expect.poll(() => status(at), { timeout: GUARD_MS }).toBe("running");
  expect((await at.vm.guestRead("vda", 0, MIB, 0x5a)).ok).toBe(true);
  const recovered = await runFleece(["--embedded", "vm"], { configPath: at.configPath, script });
  expect(recovered.exitCode, recovered.stderr).toBe(0);
  await expectSound(at);
  return signal !== null;
}

/** The guest works on what the document says, all that it lists is there, and nothing else. */
async function expectSound(at: Site): Promise<void> {
  const { snapshots, layers } = await documentOf(at);
  const homes = at.vm.disks.map(({ path }) => path);
  const expected = layers.length === 0 ? homes : layers.map(({ active }) => active);
  expect(await activeFiles(at)).toEqual(expected);
  expect((await at.vm.guestRead("vda", 0, MIB, 0x5a)).ok).toBe(true);
  expect((await at.vm.guestWrite("vdb", 4 * MIB, 65_536, 0x22)).ok).toBe(true);
  const names = snapshots.flatMap(({ name }) => ["vda", "vdb"].map((target) => `${target}-${name}.qcow2`));
  for (const { name, memory } of snapshots) {
    if (memory?.kind !== "external") throw new Error(`Expected memory of snapshot ${name}`);
    expect(await fileDigest(memory.file)).toBe(memory.sha256);
    names.push(`${name}.save`);
  }
  const found = await readdir(at.directory.file(DIRECTORY)).catch(() => []);
  expect(found.filter((file) => file !== "snapshots.json").toSorted()).toEqual(names.toSorted());
  expect((await at.files()).filter((file) => file.includes("operations/"))).toEqual([]);
}

async function killAt(
  match: RegExp,
  when: StepFault["when"],
  moments: readonly number[],
  disks: readonly SiteDisk[] = PLAIN,
): Promise<number> {
  let kills = 0;
  let at: Site | undefined;
  for (const moment of moments) {
    // A chain of many layers would make every check long.
    if (at === undefined || kills % 8 === 0) at = await startSite({ disks });
    if (!(await killOnce(at, { match, when, at: moment }, `s${moment}`))) break;
    kills++;
  }
  return kills;
}

async function countSteps(match: RegExp, disks: readonly SiteDisk[] = PLAIN): Promise<number> {
  const at = await startSite({ disks });
  const command = await startWithFault(at, ["vm", "s"], { match }, { script });
  const { exitCode, stderr } = await command.process.result();
  expect(exitCode, stderr).toBe(0);
  await expectSound(at);
  return (await command.steps()).length;
}

describe("kill -9 of the agent in the creation of a domain snapshot", () => {
  it.each([
    ["after each write of the journal", JOURNAL, "after"],
    ["before each change", CHANGES, "before"],
  ] as const)(
    "%s: the guest goes on, and the next command goes back or completes it",
    async (what, match, when) => {
      const steps = await countSteps(match);
      const every = Array.from({ length: steps }, (_, index) => index + 1);
      // Of the journal: before the saving of memory, before the disks change (the guest is stopped), and after that.
      const some = when === "after" ? [steps - 5, steps - 4, steps - 2] : [Math.ceil(steps / 2)];
      const kills = await killAt(match, when, ALL_FAULTS ? every : some);
      expect(kills).toBe(ALL_FAULTS ? steps : some.length);
      printFigure("agent: domain snapshot create", what, kills);
    },
  );

  it("while an image is closed: the guest has it again before it goes on", async () => {
    const steps = ALL_FAULTS ? await countSteps(CHANGES, FOREIGN) : 1;
    const every = Array.from({ length: steps }, (_, index) => index + 1);
    const kills = await killAt(ALL_FAULTS ? CHANGES : MIGRATE, "before", every, FOREIGN);
    expect(kills).toBe(steps);
    printFigure("agent: domain snapshot create over vpc", "before each change", kills);
  });
});
