import { execFile } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { isIntact, type IntactEntry } from "../../src/model/backup.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import { writeConfig } from "../support/config-file.js";
import { runFleece, type FleeceResult } from "../support/fleece.js";
import { qemuImg } from "../support/image-tool.js";
import { temporaryDirectory } from "../support/lifetime.js";
import { dataRun, DOMAIN, noise, RepositoryFixture, zeroRun } from "../qemu/repository/backup-fixture.js";
import { printFigure } from "./support/figures.js";
import { ALL_FAULTS } from "../support/sample.js";

const preload = fileURLToPath(new URL("support/steps.mjs", import.meta.url));

/** All that a merge changes in the repository, the programs and images it opens, and each read of what is copied. */
const MERGE_STEPS =
  /^(rename \S+\/repo|rm \S+\/repo|write \S+\/repo|sync \S+\/repo|spawn |nbd-read$|qmp (blockdev|block-export))/;

type Contents = ReadonlyMap<string, ReadonlyMap<string, Buffer>>;

/** QEMU compresses no image that ends within a cluster. */
const KINDS = [
  { compression: "none", sizeBytes: 12 * BLOCK_SIZE + 512 },
  { compression: "zstd", sizeBytes: 12 * BLOCK_SIZE },
] as const;
type Kind = (typeof KINDS)[number];

/** A full and three incrementals of two disks, of which the last two are to stay. */
async function prepare({ sizeBytes }: Kind): Promise<{ readonly path: string; readonly contents: Contents }> {
  const fixture = await RepositoryFixture.create();
  const contents = new Map<string, ReadonlyMap<string, Buffer>>();
  let vda = noise(sizeBytes, 1);
  let vdb = noise(sizeBytes, 2);
  let parent: IntactEntry | undefined;
  for (let turn = 1; turn <= 4; turn++) {
    vda = Buffer.from(vda);
    vdb = Buffer.from(vdb);
    noise(2 * BLOCK_SIZE, 10 + turn).copy(vda, turn * BLOCK_SIZE);
    vda.fill(0, (turn + 4) * BLOCK_SIZE, (turn + 6) * BLOCK_SIZE);
    vdb.fill(turn, 0, BLOCK_SIZE);
    const disks =
      parent === undefined
        ? { vda: { content: vda }, vdb: { content: vdb } }
        : {
            vda: { content: vda, runs: [dataRun(turn, 2), zeroRun(turn + 4, 2)] },
            vdb: { content: vdb, runs: [dataRun(0)] },
          };
    parent = await fixture.backUp(`b${turn}`, disks, parent);
    contents.set(parent.id, new Map(Object.entries({ vda, vdb })));
  }
  return { path: fixture.path, contents };
}

/** `fleece backup prune` on a copy of the repository, with a kill before its `at`-th step. */
async function prune(
  from: string,
  { compression }: Kind,
  at?: number,
): Promise<{
  readonly fixture: RepositoryFixture;
  readonly result: FleeceResult;
  readonly steps: readonly string[];
}> {
  const directory = await temporaryDirectory();
  const path = directory.file("repo");
  await promisify(execFile)("cp", ["-a", from, path]);
  const retention = { last: 2, timeZone: "UTC" };
  const configPath = await writeConfig(directory.path, {
    domains: [{ name: DOMAIN, qmp: directory.file("nobody.qmp") }],
    more: {
      repositories: [{ name: "default", path, retention, compression }],
      runtimeDir: directory.file("run"),
    },
  });
  const log = directory.file("steps.log");
  const fault = at === undefined ? {} : { at, when: "before", action: "kill" };
  const result = await runFleece(["--embedded", "backup", "prune", DOMAIN, "--json"], {
    configPath,
    env: {
      NODE_OPTIONS: `--import ${preload}`,
      FLEECE_TEST_STEPS: JSON.stringify({ match: MERGE_STEPS.source, log, ...fault }),
    },
  });
  const steps = (await readFile(log, "utf8")).split("\n").filter((line) => line !== "");
  return { fixture: await RepositoryFixture.create(path), result, steps };
}

/** All that is listed is whole for us, and for QEMU's own tools, which follow the headers alone. */
async function expectSound(fixture: RepositoryFixture, contents: Contents): Promise<readonly string[]> {
  const directory = await temporaryDirectory();
  const entries = await fixture.repository.list(DOMAIN);
  expect(entries.filter((entry) => !isIntact(entry))).toEqual([]);
  for (const entry of entries.filter(isIntact)) {
    await using backup = await fixture.repository.open(entry);
    for (const [target, content] of contents.get(entry.id) ?? []) {
      await using expected = await backup.expectations(target);
      expect(await expected.firstMismatch(0, content), `digests of ${target} in ${entry.id}`).toBeUndefined();
      const raw = directory.file("read.raw");
      await qemuImg("convert", "-f", "qcow2", "-O", "raw", fixture.file(entry.id, `${target}.qcow2`), raw);
      expect((await readFile(raw)).equals(content), `${target} in ${entry.id}`).toBe(true);
    }
  }
  return entries.map(({ id }) => id);
}

describe("fleece backup prune, killed", () => {
  it.each(KINDS)(
    "leaves every backup that stays restorable at every step of a merge, and the next one finishes it: compression $compression",
    async (kind) => {
      const { path, contents } = await prepare(kind);
      const whole = await prune(path, kind);
      expect(whole.result.exitCode, whole.result.stderr).toBe(0);
      expect(await expectSound(whole.fixture, contents)).toEqual(["b3", "b4"]);
      const { length } = whole.steps;
      const moments = ALL_FAULTS ? Array.from({ length }, (_, index) => index + 1) : [Math.ceil(length / 2)];
      for (const at of moments) {
        const { fixture, result, steps } = await prune(path, kind, at);
        expect(result.signal, `step ${at} of ${length}\n${result.stderr}`).toBe("SIGKILL");
        const listed = await expectSound(fixture, contents);
        expect(listed, steps.at(-1)).toEqual(expect.arrayContaining(["b3", "b4"]));

        const lock = await fixture.repository.lock(DOMAIN);
        await fixture.repository.finishMerges(DOMAIN);
        for (const entry of (await fixture.repository.list(DOMAIN)).filter(isIntact)) {
          if (["b1", "b2"].includes(entry.id)) await fixture.repository.merge(entry);
        }
        await lock.release();
        expect(await expectSound(fixture, contents), steps.at(-1)).toEqual(["b3", "b4"]);
        expect((await readdir(fixture.file("b3", ".."))).toSorted()).toEqual([".lock", "b3", "b4"]);
        expect((await readdir(fixture.file("b3", "."))).toSorted()).toEqual([
          "manifest.json",
          "vda.digests~b2",
          "vda.qcow2",
          "vdb.digests~b2",
          "vdb.qcow2",
        ]);
      }
      printFigure("backup prune", "before a step of a merge", moments.length);
    },
  );
});
