import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { untilTestEnds } from "../support/lifetime.js";
import { QmpProxy, type Lost } from "../support/qmp-proxy.js";
import { printFigure } from "./support/figures.js";
import { backupStoppedAt } from "./support/moments.js";
import { Scene } from "./support/scene.js";
import { ALL_FAULTS } from "../support/sample.js";

const UNANSWERED = /was not answered within \d+ ms/;

/** Two disks, so that the freeze holds the guest, and a monitor that can be made to hang. */
async function changedScene(): Promise<{ readonly scene: Scene; readonly proxy: QmpProxy }> {
  const scene = await Scene.start(2);
  const { directory, vm } = scene.at;
  const path = directory.file("proxy.qmp");
  const proxy = untilTestEnds(await QmpProxy.listen(path, vm.qmpPath));
  const domains = [{ ...domainConfig("vm", vm), qmp: path }];
  await writeConfig(directory.path, { domains, more: { runtimeDir: directory.file("run") } });
  await scene.backUp();
  await scene.touch();
  scene.mark();
  return { scene, proxy };
}

async function expectChainGoesOn(scene: Scene): Promise<void> {
  await scene.at.json("block-snapshot", "list", "vm");
  await scene.expectClean();
  await scene.touch();
  const next = await scene.backUp();
  expect(next.level, next.reason).toBe("INCREMENTAL");
  await scene.expectClean();
  await scene.expectVerified();
}

const IN_THE_FREEZE: readonly (readonly [string, Lost, RegExp])[] = [
  ["the first filter", "commands", /copy-before-write/],
  ["the first filter", "replies", /copy-before-write/],
  ["cont", "replies", /"cont"/],
];

describe("A monitor that hangs", () => {
  it.each(ALL_FAULTS ? IN_THE_FREEZE : IN_THE_FREEZE.slice(0, 1))(
    "at %s (%s lost): the backup fails by its deadline, and the guest runs then",
    async (at, lost, pattern) => {
      const { scene, proxy } = await changedScene();
      const stalled = proxy.stallAt(pattern, lost);
      const command = await scene.at.start("backup", "run", "vm");
      await stalled;
      if (at !== "cont") expect(await scene.status()).toBe("paused");
      const { exitCode, stderr } = await command.result();
      expect(stderr).toMatch(UNANSWERED);
      expect(stderr).toContain("DOMAIN_UNREACHABLE");
      expect(exitCode).toBe(5);
      // Given up at the first deadline: the guest waits for the guard, which is served only after that.
      expect(proxy.sentInVain).toEqual([]);
      expect(await scene.status()).toBe("running");
      expect(await scene.expectSound()).toHaveLength(1);
      await expectChainGoesOn(scene);
      printFigure("QMP that hangs", `at ${at}, ${lost} lost`, 1);
    },
  );

  if (ALL_FAULTS)
    it("in the freeze, and serves nobody afterwards: the guest runs once it serves again, the next command does the rest", async () => {
      const { scene, proxy } = await changedScene();
      const stalled = proxy.stallAt(/copy-before-write/, "replies");
      const command = await scene.at.start("backup", "run", "vm");
      await stalled;
      proxy.turnAway(true);
      const { exitCode, stderr } = await command.result();
      expect(stderr).toMatch(UNANSWERED);
      expect(exitCode).toBe(5);
      expect(await scene.status()).toBe("paused");
      proxy.turnAway(false);
      // By the guard, which the test waits for until its own deadline.
      while ((await scene.status()) !== "running") await delay(20);
      await scene.touch();
      expect(await scene.expectSound()).toHaveLength(1);
      await expectChainGoesOn(scene);
      printFigure("QMP that hangs and serves nobody", "in the freeze, replies lost", 1);
    });

  if (ALL_FAULTS)
    it("in the midst of the pull: the backup fails by its deadline, the guest goes on", async () => {
      const { scene, proxy } = await changedScene();
      const command = await backupStoppedAt(scene, "in the midst of the pull");
      // What the backup asks before it trusts what it has read.
      const stalled = proxy.stallAt(/query-named-block-nodes/);
      command.continue();
      await stalled;
      for (let turn = 0; turn < 4; turn++) await scene.touch();
      const { exitCode, stderr } = await command.process.result();
      expect(stderr).toMatch(UNANSWERED);
      expect(stderr).toContain("DOMAIN_UNREACHABLE");
      expect(exitCode).toBe(5);
      expect(await scene.expectSound()).toHaveLength(1);
      await expectChainGoesOn(scene);
      printFigure("QMP that hangs", "in the midst of the pull", 1);
    });

  if (ALL_FAULTS)
    it("at the end of an export: the backup, published already, is put in order over a new connection", async () => {
      const { scene, proxy } = await changedScene();
      const stalled = proxy.stallAt(/"block-export-del"/);
      const command = await scene.at.start("backup", "run", "vm");
      await stalled;
      await scene.touch();
      const { exitCode, stderr } = await command.result();
      expect(exitCode, stderr).toBe(0);
      expect(await scene.expectSound()).toHaveLength(2);
      await scene.expectClean();
      await expectChainGoesOn(scene);
      printFigure("QMP that hangs", "at the end of an export", 1);
    });
});
