import { execFile } from "node:child_process";
import { mkdir, readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { isIntact, type IntactEntry } from "../../src/model/backup.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import { dataRun, DOMAIN, noise, RepositoryFixture, zeroRun } from "../qemu/repository/backup-fixture.js";
import { writeConfig } from "../support/config-file.js";
import { type FleeceResult, runFleece } from "../support/fleece.js";
import { qemuImg } from "../support/image-tool.js";
import { temporaryDirectory } from "../support/lifetime.js";
import { ALL_FAULTS } from "../support/sample.js";
import { printFigure } from "./support/figures.js";

const preload = fileURLToPath(new URL("support/steps.mjs", import.meta.url));

/** What a copy makes durable in the second repository and the journal, the programs and images it opens, and each read of what is copied. */
const COPY_STEPS =
  /^((rename|rm|mkdir|sync) \S+\/(second|state)|spawn (?!qemu-img info)|nbd-read$|qmp (blockdev|block-export))/;

const SIZE = 6 * BLOCK_SIZE + 512;
const IDS = ["b1", "b2"];

type Contents = ReadonlyMap<string, ReadonlyMap<string, Buffer>>;

/** A full and an incremental. */
async function prepare(): Promise<{ readonly path: string; readonly contents: Contents }> {
  const fixture = await RepositoryFixture.create();
  const contents = new Map<string, ReadonlyMap<string, Buffer>>();
  let vda = noise(SIZE, 1);
  let parent: IntactEntry | undefined;
  for (const [turn, id] of IDS.entries()) {
    vda = Buffer.from(vda);
    noise(BLOCK_SIZE, 10 + turn).copy(vda, turn * BLOCK_SIZE);
    vda.fill(0, (turn + 2) * BLOCK_SIZE, (turn + 3) * BLOCK_SIZE);
    const disks =
      parent === undefined
        ? { vda: { content: vda } }
        : { vda: { content: vda, runs: [dataRun(turn), zeroRun(turn + 2)] } };
    parent = await fixture.backUp(id, disks, parent);
    contents.set(id, new Map([["vda", vda]]));
  }
  return { path: fixture.path, contents };
}

interface Place {
  readonly second: RepositoryFixture;
  readonly state: string;
  /** `fleece backup copy`, with a kill before its `at`-th step if one is given. */
  readonly copy: (
    at?: number,
  ) => Promise<{ readonly result: FleeceResult; readonly steps: readonly string[] }>;
}

async function start(from: string): Promise<Place> {
  const directory = await temporaryDirectory();
  const [first, second] = [directory.file("first"), directory.file("second")];
  await promisify(execFile)("cp", ["-a", from, first]);
  await mkdir(second);
  const configPath = await writeConfig(directory.path, {
    domains: [{ name: DOMAIN, qmp: directory.file("nobody.qmp") }],
    repositories: [
      { name: "default", path: first },
      { name: "second", path: second },
    ],
    more: { runtimeDir: directory.file("run") },
  });
  let runs = 0;
  return {
    second: await RepositoryFixture.create(second),
    state: directory.file("state/operations"),
    copy: async (at) => {
      const log = directory.file(`steps-${runs++}.log`);
      const fault = at === undefined ? {} : { at, when: "before", action: "kill" };
      const result = await runFleece(["--embedded", "backup", "copy", DOMAIN, "--to", "second", "--json"], {
        configPath,
        env: {
          NODE_OPTIONS: `--import ${preload}`,
          FLEECE_TEST_STEPS: JSON.stringify({ match: COPY_STEPS.source, log, ...fault }),
        },
      });
      const steps = (await readFile(log, "utf8").catch(() => "")).split("\n").filter((line) => line !== "");
      return { result, steps };
    },
  };
}

/** All that is listed is whole for us, and for QEMU's own tools; resolves with the ids. */
async function expectSound({ second }: Place, contents: Contents): Promise<readonly string[]> {
  const directory = await temporaryDirectory();
  const entries = await second.repository.list(DOMAIN);
  expect(entries.filter((entry) => !isIntact(entry))).toEqual([]);
  for (const entry of entries.filter(isIntact)) {
    expect(entry.copiedFrom).toBe("default");
    await using backup = await second.repository.open(entry);
    for (const [target, content] of contents.get(entry.id) ?? []) {
      await using expected = await backup.expectations(target);
      expect(await expected.firstMismatch(0, content), `digests of ${target} in ${entry.id}`).toBeUndefined();
      const raw = directory.file("read.raw");
      await qemuImg("convert", "-f", "qcow2", "-O", "raw", second.file(entry.id, `${target}.qcow2`), raw);
      expect((await readFile(raw)).equals(content), `${target} in ${entry.id}`).toBe(true);
    }
  }
  return entries.map(({ id }) => id);
}

describe("fleece backup copy, killed", () => {
  it("leaves whole copies alone at every step, and the next one does the rest and tidies up", async () => {
    const { path, contents } = await prepare();
    const whole = await start(path);
    const { result, steps } = await whole.copy();
    expect(result.exitCode, result.stderr).toBe(0);
    expect(await expectSound(whole, contents)).toEqual(IDS);
    const { length } = steps;
    const moments = ALL_FAULTS ? Array.from({ length }, (_, index) => index + 1) : [Math.ceil(length / 2)];
    for (const at of moments) {
      const place = await start(path);
      const killed = await place.copy(at);
      const step = `step ${at} of ${length}: ${killed.steps.at(-1) ?? ""}`;
      expect(killed.result.signal, `${step}\n${killed.result.stderr}`).toBe("SIGKILL");
      const listed = await expectSound(place, contents);
      expect(IDS.slice(0, listed.length), step).toEqual(listed);

      const next = await place.copy();
      expect(next.result.exitCode, `${step}\n${next.result.stderr}`).toBe(0);
      const { backups } = next.result.json() as { backups: { id: string }[] };
      expect(
        backups.map(({ id }) => id),
        step,
      ).toEqual(IDS.slice(listed.length));
      expect(await expectSound(place, contents), step).toEqual(IDS);
      const left = (await readdir(place.second.file("..", "."))).toSorted();
      expect(left, step).toEqual([DOMAIN]);
      expect((await readdir(place.second.file(".", "."))).toSorted(), step).toEqual([".lock", ...IDS]);
      const records = await readdir(place.state, { recursive: true });
      expect(
        records.filter((name) => name.includes(".json")),
        step,
      ).toEqual([]);
    }
    printFigure("agent: backup copy", "before a step", moments.length);
  });
});
