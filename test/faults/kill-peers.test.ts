import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { qemuImg } from "../support/image-tool.js";
import { printFigure } from "./support/figures.js";
import { backupStoppedAt, daemonPids, MOMENTS, type Moment } from "./support/moments.js";
import { Scene, type BackupMessage } from "./support/scene.js";
import { ALL_FAULTS } from "../support/sample.js";

const DISKS = 1;

/** `npm run test:faults` tries every moment; `npm test` one for each peer. */
const momentsOr = (moment: Moment) => (ALL_FAULTS ? MOMENTS : [moment]);

/** How a backup of an inactive domain ends without its daemon, and what it says. All has been read before the publication. */
const WITHOUT_DAEMON: Readonly<Record<Moment, readonly [number, RegExp]>> = {
  "after the freeze": [1, /"QEMU_FAILED".*qemu-storage-daemon ended/],
  "in the midst of the pull": [1, /"QEMU_FAILED".*daemon of the frozen disks is gone: .*ended by SIGKILL/],
  "before the publication": [0, /^/],
};

/** A domain with a backup and changes since, which the next backup is to read. */
async function changedScene(): Promise<Scene> {
  const scene = await Scene.start(DISKS);
  await scene.backUp();
  await scene.touch();
  scene.mark();
  return scene;
}

/** The next command has put everything in order, and nothing of the chain is lost. */
async function expectChainGoesOn(scene: Scene): Promise<void> {
  await scene.at.json("block-snapshot", "list", "vm");
  await scene.expectClean();
  await scene.expectSound();
  await scene.touch();
  const next = await scene.backUp();
  expect(next.level, next.reason).toBe("INCREMENTAL");
  await scene.expectClean();
  await scene.expectVerified();
}

describe("A backup meets", () => {
  it.each(momentsOr("in the midst of the pull"))(
    "kill -9 of the repository's storage daemon: the guest goes on, nothing is lost, %s",
    async (moment) => {
      const scene = await changedScene();
      const command = await backupStoppedAt(scene, moment);
      const daemons = await daemonPids(scene, "p-");
      // Before the publication it has ended already, with everything written.
      expect(daemons).toHaveLength(moment === "before the publication" ? 0 : 1);
      for (const pid of daemons) process.kill(pid, "SIGKILL");
      await scene.touch();
      command.continue();
      const { exitCode, stderr } = await command.process.result();
      if (daemons.length > 0) expect(stderr).toMatch(/SIGKILL|NBD_FAILED|QEMU_FAILED/);
      expect(exitCode).toBe(daemons.length > 0 ? 1 : 0);
      expect(await scene.expectSound()).toHaveLength(daemons.length > 0 ? 1 : 2);
      await expectChainGoesOn(scene);
      printFigure("kill -9 of the repository's storage daemon", moment, daemons.length);
    },
  );

  it.each(momentsOr("after the freeze"))(
    "kill -9 of QEMU: what is listed is right, and the next backup compares, and says why, %s",
    async (moment) => {
      const scene = await changedScene();
      const command = await backupStoppedAt(scene, moment);
      await scene.at.vm.kill();
      command.continue();
      await command.process.result();
      await scene.expectSound();
      await scene.at.vm.restart();
      await scene.at.json("block-snapshot", "list", "vm");
      await scene.touch();
      const next = await scene.backUp();
      expect(next.level, next.reason).toBe("INCREMENTAL");
      expect(next.reason).toMatch(/does not exist|inconsistent/);
      await scene.expectClean();
      await scene.touch();
      expect((await scene.backUp()).level).toBe("INCREMENTAL");
      await scene.expectVerified();
      printFigure("kill -9 of QEMU", moment, 1);
    },
  );

  it.each(momentsOr("in the midst of the pull"))(
    "kill -9 of an inactive domain's storage daemon: no checkpoint is lost, %s",
    async (moment) => {
      const scene = await changedScene();
      await scene.at.vm.quit();
      const command = await backupStoppedAt(scene, moment);
      const daemons = await daemonPids(scene, "d-");
      expect(daemons).toHaveLength(1);
      for (const pid of daemons) process.kill(pid, "SIGKILL");
      command.continue();
      const { exitCode, stderr } = await command.process.result();
      const [code, words] = WITHOUT_DAEMON[moment];
      expect(stderr).toMatch(words);
      expect(exitCode, stderr).toBe(code);
      expect(await scene.expectSound()).toHaveLength(moment === "before the publication" ? 2 : 1);
      await scene.at.vm.restart();
      await expectChainGoesOn(scene);
      printFigure("kill -9 of an inactive domain's storage daemon", moment, 1);
    },
  );

  it.each(momentsOr("before the publication"))(
    "start of an inactive domain: at once, and the backup is taken again from the running one, %s",
    async (moment) => {
      const scene = await changedScene();
      await scene.at.vm.quit();
      const command = await backupStoppedAt(scene, moment);
      await scene.at.vm.restart();
      await scene.touch();
      command.continue();
      const result = await command.process.result();
      expect(result.exitCode, result.stderr).toBe(0);
      const again = moment !== "before the publication";
      const backup = result.json() as BackupMessage;
      expect(backup).toMatchObject({ level: "INCREMENTAL", consistency: again ? "CRASH" : "CLEAN" });
      if (again) expect(result.stderr).toContain("The domain was started during its backup");
      expect(await scene.expectSound()).toHaveLength(2);
      await expectChainGoesOn(scene);
      printFigure("start of an inactive domain", moment, 1);
    },
  );
});

describe("kill -9 of a client that reads an export", () => {
  it("disturbs neither the guest nor the moment: the next reader gets all of it", async () => {
    const scene = await changedScene();
    const { at } = scene;
    const disk = at.vm.disk("vda").path;
    const frozen = await scene.readRaw(disk, "qcow2");
    await at.json("block-snapshot", "create", "vm", "--name", "s");
    const { exports } = await at.json<{ exports: { uri: string }[] }>(
      ...["export", "start", "vm", "--snapshot", "s"],
    );
    const uri = exports[0]?.uri ?? "";
    const times = ALL_FAULTS ? 20 : 2;
    for (let time = 0; time < times; time++) {
      // A pipe that nobody reads: the client comes to a halt in the midst of its requests.
      const reader = spawn("nbdcopy", [uri, "-"], { stdio: ["ignore", "pipe", "ignore"] });
      await once(reader.stdout, "readable");
      await scene.touch();
      reader.kill("SIGKILL");
      await once(reader, "exit");
      await scene.touch();
    }
    const copy = at.directory.file("copy.raw");
    await qemuImg("convert", "-O", "raw", uri, copy);
    expect((await scene.readRaw(copy, "raw")).equals(frozen)).toBe(true);
    await at.json("block-snapshot", "delete", "vm", "s");
    await expectChainGoesOn(scene);
    printFigure("kill -9 of a client of an export", "in the midst of its reads", times);
  });
});
