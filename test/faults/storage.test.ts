import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { writeConfig } from "../support/config-file.js";
import { qemuImg } from "../support/image-tool.js";
import { mountTmpfs } from "../support/mount.js";
import { printFigure } from "./support/figures.js";
import { backupStoppedAt, daemonPids } from "./support/moments.js";
import { Scene } from "./support/scene.js";
import { startWithFault } from "./support/steps.js";
import { ALL_FAULTS } from "../support/sample.js";

const run = promisify(execFile);
const MIB = 1024 * 1024;
const JOURNAL_CONTENT = /^write \S+\/state\/operations\//;

async function changedScene(): Promise<Scene> {
  const scene = await Scene.start(1);
  await scene.backUp();
  await scene.touch();
  scene.mark();
  return scene;
}

async function expectChainGoesOn(scene: Scene): Promise<void> {
  await scene.touch();
  const next = await scene.backUp();
  expect(next.level, next.reason).toBe("INCREMENTAL");
  await scene.expectClean();
  await scene.expectVerified();
}

describe("A full file system", () => {
  it.each(["fail", "fail-from"] as const)(
    "of the state directory, at every write of the journal (%s): the guest goes on, nothing is lost",
    async (action) => {
      const scene = await changedScene();
      const counting = await startWithFault(scene.at, ["backup", "run", "vm"], { match: JOURNAL_CONTENT });
      expect((await counting.process.result()).exitCode).toBe(0);
      const writes = (await counting.steps()).length;
      const chosen = ALL_FAULTS
        ? Array.from({ length: writes }, (_write, index) => index + 1)
        : [Math.ceil(writes / 2)];
      for (const at of chosen) {
        await scene.expectSound();
        await scene.touch();
        scene.mark();
        const fault = { match: JOURNAL_CONTENT, at, when: "before", action } as const;
        const command = await startWithFault(scene.at, ["backup", "run", "vm"], fault);
        while (command.process.running) await scene.touch();
        const { exitCode, stderr } = await command.process.result();
        expect(stderr, `write ${at} of ${writes}`).toMatch(/NO_SPACE|no space/);
        expect(exitCode).toBe(1);
        expect(await scene.status()).toBe("running");
        await scene.at.json("block-snapshot", "list", "vm");
        await scene.expectClean();
      }
      await expectChainGoesOn(scene);
      printFigure(`ENOSPC in the state directory (${action})`, "at a write of the journal", chosen.length);
    },
  );

  it("of the repository: the backup fails and leaves nothing, the next one is incremental", async (context) => {
    const scene = await Scene.start(1);
    if (!(await mountTmpfs(scene.at.directory.file("backups"), "size=3m"))) context.skip();
    await scene.backUp();
    for (let offset = 0; offset < 2 * MIB; offset += 65_536) {
      const name = scene.at.directory.file("backups");
      if (offset === 0) await run("fallocate", ["-l", "1200k", `${name}/ballast`]);
      await scene.write("vda", offset, 65_536, 1 + offset / 65_536);
    }
    const result = await scene.at.run("backup", "run", "vm");
    expect(result.stderr).toContain("(NO_SPACE)");
    expect(result.exitCode).toBe(1);
    await run("rm", [scene.at.directory.file("backups/ballast")]);
    await scene.expectClean();
    await run("mount", ["-o", "remount,size=32m", scene.at.directory.file("backups")]);
    await expectChainGoesOn(scene);
    printFigure("full repository", "in the midst of the pull", 1);
  });

  it("of scratch images: the guest's writes go on, the backup says that it lost its moment", async (context) => {
    const scene = await Scene.start(1);
    if (!(await mountTmpfs(scene.at.directory.file("scratch"), "size=512k"))) context.skip();
    await scene.backUp();
    await scene.write("vda", 0, 2 * MIB, 7);
    const command = await backupStoppedAt(scene, "in the midst of the pull");
    for (let offset = 0; offset < 2 * MIB; offset += 65_536) await scene.write("vda", offset, 65_536, 8);
    command.continue();
    const { exitCode, stderr } = await command.process.result();
    expect(stderr).toContain("SNAPSHOT_BROKEN");
    expect(exitCode).toBe(1);
    expect(await scene.expectSound()).toHaveLength(1);
    await scene.expectClean();
    await expectChainGoesOn(scene);
    printFigure("full scratch directory", "in the midst of the pull", 1);
  });
});

describe("Slow storage of the repository", () => {
  it("holds up the backup, not the guest: nothing is written for as long as the guest works", async () => {
    const scene = await changedScene();
    const command = await backupStoppedAt(scene, "in the midst of the pull");
    const [daemon = 0] = await daemonPids(scene, "p-");
    process.kill(daemon, "SIGSTOP");
    command.continue();
    for (let turn = 0; turn < 50; turn++) await scene.touch();
    expect(command.process.running).toBe(true);
    process.kill(daemon, "SIGCONT");
    const { exitCode, stderr } = await command.process.result();
    expect(exitCode, stderr).toBe(0);
    expect(await scene.expectSound()).toHaveLength(2);
    await scene.expectClean();
    await expectChainGoesOn(scene);
    printFigure("storage of the repository that hangs for a while", "in the midst of the pull", 1);
  });
});

/** Puts a filter between a node and its file, as if the storage below began to behave so. */
async function underlay({ at }: Scene, node: string, fileNode: string, filter: object): Promise<void> {
  await at.vm.qmp("blockdev-add", { "node-name": "bad", ...filter });
  const common = { driver: "qcow2", "node-name": node, discard: "unmap", "read-only": false };
  await at.vm.qmp("blockdev-reopen", { options: [{ ...common, file: "bad" }] });
  expect((await at.vm.blockState()).nodes.some((name) => name.startsWith(fileNode))).toBe(true);
}

describe("I/O errors of the disk under a running domain", () => {
  it("fail the backup that reads there; the guest's other I/O goes on, and no change is forgotten", async () => {
    const scene = await Scene.start(1);
    await scene.backUp();
    await scene.write("vda", 0, 6000, 3);
    // Without a list of disks, they are found by their devices, whatever lies below.
    const { directory, vm } = scene.at;
    const more = { runtimeDir: directory.file("run") };
    await writeConfig(directory.path, { domains: [{ name: "vm", qmp: vm.qmpPath }], more });
    const node = vm.nodeName("vda");
    const map = JSON.parse(
      await qemuImg("map", "-U", "--output=json", "-f", "qcow2", vm.disk("vda").path),
    ) as {
      readonly offset: number;
    }[];
    // Where the first bytes of the disk lie in its file.
    const sector = (map[0]?.offset ?? 0) / 512;
    const errors = {
      driver: "blkdebug",
      image: "vda-file",
      "inject-error": [{ event: "read_aio", errno: 5, sector }],
    };
    await underlay(scene, node, "vda-file", errors);
    const result = await scene.at.run("backup", "run", "vm");
    expect(result.stderr).toMatch(/NBD_FAILED/);
    expect(result.exitCode).toBe(1);
    await scene.write("vda", 65_536, 65_536, 9);
    expect(await scene.expectSound()).toHaveLength(1);
    await scene.at.vm.restart();
    await scene.expectClean();
    await expectChainGoesOn(scene);
    printFigure("EIO of the disk", "at the read of a sector", 1);
  });
});

const SCRATCH_FAULTS = {
  // Eight seconds for each cluster once the first is through: twice as long as a guest's write may be held up.
  slow: {
    objects: [{ "qom-type": "throttle-group", id: "slow", limits: { "bps-write": 8192 } }],
    filter: (file: string) => ({ driver: "throttle", "throttle-group": "slow", file }),
  },
  "failing with EIO": {
    objects: [],
    filter: (image: string) => ({
      driver: "blkdebug",
      image,
      "inject-error": [{ event: "write_aio", errno: 5, sector: -1 }],
    }),
  },
};

interface NamedNode {
  readonly "node-name": string;
  readonly drv: string;
  readonly file: string;
}

describe("Storage of scratch images", () => {
  it.each(ALL_FAULTS ? (["slow", "failing with EIO"] as const) : (["failing with EIO"] as const))(
    "that is %s: the guest's writes go well, the backup says that it lost its moment",
    async (name) => {
      const { objects, filter } = SCRATCH_FAULTS[name];
      const scene = await changedScene();
      const { vm } = scene.at;
      const command = await backupStoppedAt(scene, "in the midst of the pull");
      const nodes = (await vm.qmp("query-named-block-nodes", { flat: true })) as NamedNode[];
      const scratchNode = (driver: string): string =>
        nodes.find(({ drv, file }) => drv === driver && file.includes("/scratch/"))?.["node-name"] ?? "";
      for (const object of objects) await vm.qmp("object-add", object);
      await vm.qmp("blockdev-add", { "node-name": "bad", ...filter(scratchNode("file")) });
      const common = { driver: "qcow2", "node-name": scratchNode("qcow2"), discard: "unmap" };
      await vm.qmp("blockdev-reopen", {
        options: [{ ...common, file: "bad", backing: vm.nodeName("vda") }],
      });
      for (let turn = 0; turn < 4; turn++) await scene.touch();
      command.continue();
      const { exitCode, stderr } = await command.process.result();
      expect(stderr).toContain("SNAPSHOT_BROKEN");
      expect(exitCode).toBe(1);
      expect(await scene.expectSound()).toHaveLength(1);
      await vm.qmp("blockdev-del", { "node-name": "bad" });
      for (const { id } of objects) await vm.qmp("object-del", { id });
      await scene.expectClean();
      await expectChainGoesOn(scene);
      printFigure(`scratch directory ${name}`, "in the midst of the pull", 1);
    },
  );
});
