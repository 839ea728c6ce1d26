import { chmod, mkdir, writeFile } from "node:fs/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import { listDomainSnapshotsHandler } from "../../../src/api/domain-snapshots.js";
import type { PlannedVolume } from "../../../src/model/volumes.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { JOURNAL, startFaulty } from "../../faults/support/steps.js";
import { domainConfig } from "../../support/config-file.js";
import { runFleece } from "../../support/fleece.js";
import { writeImage } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { logicalVolume, lvm, MISSING_LVM, taggedVolumes, testGroup } from "../../support/logical-volumes.js";
import { endMachines, machinesOf } from "../../support/machines-of.js";
import { Monitor } from "../../support/monitor.js";
import type { TestDisk } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";
import { leftoversOf, startQuietAgent } from "./support/quiet-agent.js";

const MIB = 1024 * 1024;
const DISK_MIB = 16;
const DOMAIN = "vm";
const PATH = process.env["PATH"] ?? "";

/** A domain on logical volumes of these kinds, full of the pattern 1. */
async function startScene(kinds: readonly ("thin" | "classic")[], group: string) {
  const directory = await temporaryDirectory();
  for (const name of ["backups", "scratch"]) await mkdir(directory.file(name));
  const disks: (TestDisk & { readonly name: string })[] = [];
  for (const [index, kind] of kinds.entries()) {
    const volume = await logicalVolume(group, kind, DISK_MIB);
    await writeImage(volume.path, "raw", `write -P 1 0 ${DISK_MIB}M`);
    disks.push({ target: `vd${"ab".charAt(index)}`, ...volume, format: "raw", blockDevice: true });
  }
  untilTestEnds({ [Symbol.asyncDispose]: () => endMachines(directory.path) });
  const vm = untilTestEnds(await TestVm.start({ directory: directory.path, disks }));
  const agent = await startQuietAgent(directory, domainConfig(DOMAIN, vm));
  const status = async () => ((await vm.qmp("query-status")) as { readonly status: string }).status;
  /** What QEMU was while LVM worked. */
  const during: string[] = [];
  const take = async (volume: PlannedVolume): Promise<void> => {
    if (vm.running) during.push(await status());
    await agent.volumes.take(volume);
    if (vm.running) during.push(await status());
  };
  const context: ServiceContext = { ...agent, volumes: { ...agent.volumes, take } };
  return {
    ...{ directory, disks, vm, context, configPath: directory.file("fleece.yaml") },
    write: async (pattern: number): Promise<void> => {
      for (const { target } of disks)
        expect(await vm.guestWrite(target, 0, MIB, pattern)).toMatchObject({ ok: true });
    },
    ...{ status, during },
    layers: async () => (await context.domainSnapshots.read(DOMAIN)).layers,
    stop: async (): Promise<void> => {
      const monitor = await Monitor.connect(vm.qmpPath, AbortSignal.timeout(60_000));
      await monitor.execute("quit").catch(() => undefined);
      monitor.close();
      await expect.poll(() => machinesOf(directory.path), { timeout: 60_000 }).toEqual([]);
    },
  };
}

/** A snapshot's volume, which nobody can write to, has this in its first MiB, and behind it what the disk had at the start. */
async function expectOld(file: string, first: number): Promise<void> {
  const reads = ["-c", `read -P ${first} 0 1M`, "-c", `read -P 1 1M ${DISK_MIB - 1}M`];
  const said = await lvm("qemu-io", "-r", "-f", "raw", ...reads, file);
  expect(said).toMatch(/^read /);
  expect(said).not.toMatch(/failed/);
}

/** Programs of this name are the script until the test ends; the real one is `$real`. */
async function replaceProgram(name: string, script: string): Promise<void> {
  const directory = await temporaryDirectory();
  process.env["PATH"] = PATH;
  const real = await lvm("which", name);
  await writeFile(directory.file(name), `#!/bin/sh\nreal=${real}\n${script}\n`);
  await chmod(directory.file(name), 0o755);
  process.env["PATH"] = `${directory.path}:${PATH}`;
  onTestFinished(() => {
    process.env["PATH"] = PATH;
  });
}

describe("A domain snapshot by LVM", () => {
  it("holds memory and volumes while the guest goes on in them, is reverted to, and is deleted", async ({
    skip,
  }) => {
    if (testGroup === undefined) return skip(MISSING_LVM);
    const scene = await startScene(["classic", "thin"], testGroup);
    const { context, directory, disks, vm } = scene;
    await scene.write(7);
    const one = await createDomainSnapshot(context, { domain: DOMAIN, name: "one", lvm: true });
    // The memory was complete, and the guest had not gone on.
    expect(scene.during).toEqual(Array(4).fill("postmigrate"));
    const [vda, vdb] = disks.map(({ name }) => `${name}-one`);
    expect(one).toMatchObject({
      kind: "external",
      memory: { kind: "external" },
      disks: [
        { target: "vda", file: `/dev/${testGroup}/${vda}`, format: "raw", volume: { kind: "classic" } },
        { target: "vdb", file: `/dev/${testGroup}/${vdb}`, format: "raw", volume: { kind: "thin" } },
      ],
    });
    expect(await taggedVolumes(testGroup)).toEqual([vda, vdb].toSorted());
    expect((await scene.layers()).map(({ active }) => active)).toEqual(disks.map(({ path }) => path));
    expect(await scene.status()).toBe("running");
    expect(await leftoversOf(directory, context)).toEqual(["one.save", "snapshots.json"]);
    await scene.write(2);
    for (const { file } of one.disks) await expectOld(file, 7);
    const { pid, keptAs } = await revertDomainSnapshot(context, { domain: DOMAIN, name: "one" });
    expect(await machinesOf(directory.path)).toEqual([pid]);
    await deleteDomainSnapshot(context, { domain: DOMAIN, name: "one" });
    expect(await taggedVolumes(testGroup)).toEqual([]);
    await scene.stop();
    for (const { active } of await scene.layers()) {
      await writeImage(active, "qcow2", "read -P 7 0 1M", `read -P 1 1M ${DISK_MIB - 1}M`);
    }
    // What the guest had written before the revert is where it was.
    for (const { path } of disks) await writeImage(path, "raw", `read -P 2 0 1M`, `read -P 1 1M 1M`);
    await revertDomainSnapshot(context, { domain: DOMAIN, name: keptAs ?? "", force: true });
    for (const { active } of await scene.layers()) await writeImage(active, "qcow2", `read -P 2 0 1M`);
    expect(vm.running).toBe(false);
  });

  it("is taken of disks alone while the guest stands still, and of an inactive domain", async ({ skip }) => {
    if (testGroup === undefined) return skip(MISSING_LVM);
    const scene = await startScene(["classic", "thin"], testGroup);
    const { context, directory, disks, vm } = scene;
    const alone = { domain: DOMAIN, name: "alone", lvm: true, diskOnly: true };
    expect(await createDomainSnapshot(context, alone)).toMatchObject({ consistency: "crash" });
    expect(vm.events.map(({ name }) => name)).toEqual(["STOP", "RESUME"]);
    expect(scene.during).toEqual(Array(4).fill("paused"));
    expect(await scene.status()).toBe("running");
    await scene.write(2);
    await vm.quit();
    const off = await createDomainSnapshot(context, { domain: DOMAIN, name: "off", lvm: true });
    expect(off).toMatchObject({ consistency: "clean", state: "inactive" });
    for (const { path } of disks) await writeImage(path, "raw", "write -P 3 0 1M");
    await revertDomainSnapshot(context, { domain: DOMAIN, name: "off", force: true });
    for (const { active } of await scene.layers()) await writeImage(active, "qcow2", "read -P 2 0 1M");
    await revertDomainSnapshot(context, { domain: DOMAIN, name: "alone", force: true });
    for (const { active } of await scene.layers()) await writeImage(active, "qcow2", "read -P 1 0 1M");
    for (const name of ["alone", "off"]) await deleteDomainSnapshot(context, { domain: DOMAIN, name });
    for (const { active } of await scene.layers()) await writeImage(active, "qcow2", "read -P 1 0 1M");
    expect(await taggedVolumes(testGroup)).toEqual([]);
    expect(await leftoversOf(directory, context)).toEqual([
      "snapshots.json",
      ...(await scene.layers()).map(({ active }) => active.split("/").at(-1)),
    ]);
  });

  it("is shown as broken once a classic one has overflowed, refused to a revert, and deleted", async ({
    skip,
  }) => {
    if (testGroup === undefined) return skip(MISSING_LVM);
    const scene = await startScene(["classic"], testGroup);
    const { context } = scene;
    const request = { domain: DOMAIN, name: "small", lvm: true, diskOnly: true };
    await expect(
      createDomainSnapshot(context, { ...request, lvmReservedBytes: 2 ** 40 }),
    ).rejects.toMatchObject({
      code: "NO_SPACE",
    });
    await createDomainSnapshot(context, { ...request, lvmReservedBytes: 4 * MIB });
    const shown = async () => {
      const { snapshots } = await listDomainSnapshotsHandler(context, {
        ...{ domain: DOMAIN, pageSize: 0, pageToken: "" },
      });
      return snapshots.map(({ disks }) => disks.map(({ volume }) => volume));
    };
    expect(await shown()).toMatchObject([[{ kind: "CLASSIC", state: "WHOLE" }]]);
    expect(await scene.vm.guestWrite("vda", 0, 8 * MIB, 2)).toMatchObject({ ok: true });
    expect(await scene.vm.guestFlush("vda")).toMatchObject({ ok: true });
    expect(await shown()).toMatchObject([[{ state: "OVERFLOWED", usedPercent: 100 }]]);
    await expect(revertDomainSnapshot(context, { domain: DOMAIN, name: "small" })).rejects.toMatchObject({
      code: "DAMAGED",
      message: expect.stringContaining("overflowed") as unknown,
    });
    expect(await scene.status()).toBe("running");
    const { configPath } = scene;
    const list = await runFleece(["--embedded", "domain-snapshot", "list", DOMAIN], { configPath });
    expect(list.stdout).toContain("external, broken");
    const { stdout } = await runFleece(["--embedded", "domain-snapshot", "show", DOMAIN, "small"], {
      configPath,
    });
    expect(stdout).toContain("classic, BROKEN: overflowed");
    await deleteDomainSnapshot(context, { domain: DOMAIN, name: "small" });
    expect(await taggedVolumes(testGroup)).toEqual([]);
  });

  it("leaves the guest running and no volume behind when a command of LVM fails or is missing", async ({
    skip,
  }) => {
    if (testGroup === undefined) return skip(MISSING_LVM);
    const scene = await startScene(["classic", "thin"], testGroup);
    const { context, directory, disks } = scene;
    const request = { domain: DOMAIN, name: "one", lvm: true };
    const sound = async (): Promise<void> => {
      expect(await scene.status()).toBe("running");
      await scene.write(1);
      expect(await taggedVolumes(testGroup ?? "")).toEqual([]);
      expect(await leftoversOf(directory, context)).toEqual([]);
    };
    await replaceProgram(
      "lvcreate",
      `case "$*" in *${disks[1]?.name ?? ""}) echo "the disk is tired" >&2; exit 5 ;; esac\nexec $real "$@"`,
    );
    for (const diskOnly of [false, true]) {
      await expect(createDomainSnapshot(context, { ...request, diskOnly })).rejects.toMatchObject({
        code: "LVM_FAILED",
        message: "lvcreate ended with exit code 5: the disk is tired",
      });
      await sound();
    }
    // It is there, and the program has failed all the same.
    await replaceProgram("lvcreate", `$real "$@" && exit 5`);
    await expect(createDomainSnapshot(context, request)).rejects.toMatchObject({ code: "LVM_FAILED" });
    await sound();
    await replaceProgram("lvs", "exit 127");
    await expect(createDomainSnapshot(context, request)).rejects.toMatchObject({ code: "TOOL_MISSING" });
    await replaceProgram("lvs", `echo '{"report":[]}'`);
    await expect(createDomainSnapshot(context, request)).rejects.toMatchObject({ code: "LVM_FAILED" });
  });

  it("leaves volumes alone that are not its own", async ({ skip }) => {
    if (testGroup === undefined) return skip(MISSING_LVM);
    const scene = await startScene(["thin"], testGroup);
    const { context, disks } = scene;
    const origin = disks[0]?.name ?? "";
    const name = `${origin}-one`;
    const request = { domain: DOMAIN, name: "one", lvm: true, diskOnly: true };
    const foreign = () => lvm("lvcreate", "--yes", "--snapshot", "--name", name, `${testGroup}/${origin}`);
    const there = () => lvm("lvs", "--noheadings", "--options", "lv_name", `${testGroup}/${name}`);
    await foreign();
    await expect(createDomainSnapshot(context, request)).rejects.toMatchObject({ code: "ALREADY_EXISTS" });
    expect(await there()).toBe(name);
    await lvm("lvremove", "--yes", `${testGroup}/${name}`);
    await createDomainSnapshot(context, request);
    await lvm("lvremove", "--yes", `${testGroup}/${name}`);
    await foreign();
    await expect(revertDomainSnapshot(context, { domain: DOMAIN, name: "one" })).rejects.toMatchObject({
      code: "DAMAGED",
    });
    await deleteDomainSnapshot(context, { domain: DOMAIN, name: "one" });
    expect(await there()).toBe(name);
  });

  it("is all there or not at all when its command is killed, and the guest runs", async ({ skip }) => {
    if (testGroup === undefined) return skip(MISSING_LVM);
    const scene = await startScene(["classic", "thin"], testGroup);
    const { context, directory, disks } = scene;
    const steps = new RegExp(
      `${JOURNAL.source}|^spawn setpriv .*lvcreate|^qmp (stop|cont|migrate) |^rename .*snapshots.json$`,
    );
    const moments = process.env["FLEECE_FAULTS"] === "all" ? [...Array(40).keys()] : [2, 3, 4, 5, 8];
    let kills = 0;
    for (const moment of moments) {
      const name = `k${moment}`;
      const args = ["--embedded", "domain-snapshot", "create", DOMAIN, "--lvm", "--name", name];
      const fault = {
        match: steps,
        at: moment + 1,
        when: moment % 2 === 0 ? "before" : "after",
        action: "kill",
      } as const;
      const command = await startFaulty(scene, args, fault);
      const { signal, exitCode, stderr } = await command.process.result();
      expect({ signal, exitCode }, stderr).toEqual(
        signal === null ? { signal: null, exitCode: 0 } : { signal: "SIGKILL", exitCode: null },
      );
      // By the guard, before anybody else comes.
      await expect.poll(() => scene.status(), { timeout: 60_000 }).toBe("running");
      const listed = await runFleece(["--embedded", "domain-snapshot", "list", DOMAIN], {
        configPath: scene.configPath,
      });
      expect(listed.exitCode, listed.stderr).toBe(0);
      expect(await context.store.operations(DOMAIN)).toEqual([]);
      const { snapshots } = await context.domainSnapshots.read(DOMAIN);
      const expected = snapshots.flatMap((each) => disks.map((disk) => `${disk.name}-${each.name}`));
      expect(await taggedVolumes(testGroup), `${signal} at ${(await command.steps()).at(-1)}`).toEqual(
        expected.toSorted(),
      );
      const files = snapshots.map((each) => `${each.name}.save`);
      expect((await leftoversOf(directory, context)).filter((file) => file.includes("save"))).toEqual(files);
      await scene.write(1);
      for (const each of snapshots) {
        for (const { file } of each.disks) await expectOld(file, 1);
        await deleteDomainSnapshot(context, { domain: DOMAIN, name: each.name });
      }
      if (signal === null) break;
      kills++;
    }
    expect(kills).toBeGreaterThan(3);
  });
});
