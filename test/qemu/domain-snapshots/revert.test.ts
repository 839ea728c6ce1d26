import { open, readFile, truncate } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { bitmapName } from "../../../src/model/checkpoint.js";
import type { DomainSnapshots } from "../../../src/model/domain-snapshot.js";
import { isFleeceError } from "../../../src/shared/errors.js";
import { revertCost, revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { qemuImg } from "../../support/image-tool.js";
import { DOMAIN, EXTRA_DEVICE, startCounterSite } from "./support/counter-site.js";

const codeOf = async (action: Promise<unknown>): Promise<string> => {
  try {
    await action;
  } catch (error) {
    if (isFleeceError(error)) return `${error.code}: ${error.message}`;
    throw error;
  }
  return "done";
};

/** As if the snapshot were of a machine without the device, whose state is in the memory image. */
function withoutDevice(all: DomainSnapshots): DomainSnapshots {
  const snapshots = all.snapshots.map((snapshot) => {
    const { machine } = snapshot;
    if (machine === undefined) return snapshot;
    const args = machine.arguments.filter(
      (word, index, list) => ![word, list[index + 1]].includes(EXTRA_DEVICE[1]),
    );
    return { ...snapshot, machine: { ...machine, arguments: args } };
  });
  return { ...all, snapshots };
}

describe("revertDomainSnapshot", () => {
  it("takes RAM and disks of a running guest back to one moment, any number of times, to running and paused", async () => {
    const site = await startCounterSite();
    const { context, guest } = site;
    const { counter, vm } = guest;
    await counter.waitTurns(2);
    const taken = await site.takeSnapshot("s1");
    await counter.waitCount(taken + 8);
    expect(await revertCost(context, { domain: DOMAIN, name: "s1" })).toEqual({
      keptAs: expect.stringMatching(/^before-s1-\d+$/) as unknown,
      endedCheckpoints: [],
      risks: [],
    });
    const later = counter.count();
    const oldPid = vm.pid;
    const outcome = await revertDomainSnapshot(context, { domain: DOMAIN, name: "s1" });
    expect(outcome).toMatchObject({ state: "running", pid: expect.any(Number) as unknown });
    expect(await site.machines()).toEqual([outcome.pid]);
    expect(outcome.pid).not.toBe(oldPid);
    await counter.waitTurns(1);
    expect(counter.count()).toBeLessThan(later);
    expect(counter.count()).toBeGreaterThan(taken);
    expect(await counter.check()).toMatch(/^ok /);
    expect(await site.status()).toBe("running");
    expect(await readFile(site.directory.file("pid"), "utf8")).toBe(`${outcome.pid}\n`);
    const document = await site.document();
    expect(document.current).toBe("s1");
    expect(document.snapshots.map(({ name, keptByRevert }) => [name, keptByRevert])).toEqual([
      ["s1", undefined],
      [outcome.keptAs, true],
    ]);
    expect(document.layers.map(({ active }) => active.replace(/.*\//, ""))).toEqual([
      "vda-s1-r1.qcow2",
      "vdb-s1-r1.qcow2",
    ]);

    const paused = await revertDomainSnapshot(context, {
      domain: DOMAIN,
      name: "s1",
      to: "paused",
      force: true,
    });
    expect([paused.state, await site.status(), paused.keptAs]).toEqual(["paused", "paused", undefined]);
    expect(await site.machines()).toEqual([paused.pid]);
    // What was not to be kept is gone; the branch that the first revert kept is not.
    const names = await site.files();
    expect(names.filter((name) => /-r1\.qcow2$/.test(name))).toEqual([]);
    expect(names.filter((name) => /-s1\.qcow2$/.test(name))).toHaveLength(2);

    const again = await revertDomainSnapshot(context, { domain: DOMAIN, name: "s1", to: "running" });
    expect(await site.machines()).toEqual([again.pid]);
    await counter.waitTurns(3);
    expect(counter.mismatches()).toEqual([]);
    expect(await counter.check()).toMatch(/^ok /);
    expect(await context.store.operations(DOMAIN)).toEqual([]);
    expect(site.warnings).toEqual([]);
  });

  it("refuses a memory image that is cut or changed, before it touches the guest", async () => {
    const site = await startCounterSite();
    const { context, guest } = site;
    await site.takeSnapshot("s1");
    const { memory } = await site.snapshot("s1");
    if (memory?.kind !== "external") throw new Error("Expected a memory image");
    const files = await site.files();
    const file = await open(memory.file, "r+");
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, memory.sizeBytes / 2);
    await file.write(Buffer.from([(byte[0] ?? 0) ^ 1]), 0, 1, memory.sizeBytes / 2);
    await file.close();
    expect(await codeOf(revertDomainSnapshot(context, { domain: DOMAIN, name: "s1" }))).toMatch(
      /^DAMAGED: .*SHA-256/,
    );
    await truncate(memory.file, memory.sizeBytes - 1);
    expect(await codeOf(revertDomainSnapshot(context, { domain: DOMAIN, name: "s1", force: true }))).toMatch(
      /^DAMAGED: Expected \d+ bytes/,
    );
    expect(guest.vm.events.filter(({ name }) => name === "STOP")).toHaveLength(1);
    expect(await site.machines()).toEqual([guest.vm.pid]);
    expect(await site.files()).toEqual(files);
    await guest.counter.waitTurns(2);
  });

  it("goes back to the old QEMU, where the guest goes on, when the new one cannot load the memory", async () => {
    const site = await startCounterSite();
    const { context, guest } = site;
    await site.takeSnapshot("s1");
    const all = await site.document();
    const files = await site.files();
    await context.domainSnapshots.write(withoutDevice(all));
    const plain = { domain: DOMAIN, name: "s1" };
    expect(await codeOf(revertDomainSnapshot(context, plain))).toMatch(
      /^FORCE_NEEDED: .*virtio-rng-pci .*rng0 is missing/,
    );
    expect(await codeOf(revertDomainSnapshot(context, { ...plain, force: true }))).toMatch(
      /^MEMORY_LOAD_FAILED: .*QEMU ended with exit code 1: .*virtio-rng/,
    );
    expect([await site.status(), await site.machines()]).toEqual(["running", [guest.vm.pid]]);
    expect(await site.files()).toEqual(files);
    expect(await context.store.operations(DOMAIN)).toEqual([]);
    expect((await site.document()).current).toBe("s1");
    // The tests' own monitor has its path again, too, and it all works with a machine that fits.
    await context.domainSnapshots.write(all);
    expect((await revertDomainSnapshot(context, plain)).state).toBe("running");
    await guest.counter.waitTurns(2);
    expect(guest.counter.mismatches()).toEqual([]);
  });
});

describe("revertDomainSnapshot of an inactive domain", () => {
  it("puts the disks back, and starts what ran if it knows how", async () => {
    const site = await startCounterSite();
    const { context, guest } = site;
    const { counter, vm } = guest;
    await site.takeSnapshot("disks", { diskOnly: true });
    await counter.waitTurns(3);
    await site.takeSnapshot("all", { paused: true });
    const taken = counter.count();
    const checkpoint = bitmapName({ name: "c1", order: 1, timeMs: 1 });
    const document = await site.document();
    await context.domainSnapshots.write({
      ...document,
      snapshots: document.snapshots.map((each) => ({
        ...each,
        disks: each.disks.map((disk) => ({ ...disk, bitmaps: [checkpoint] })),
      })),
    });
    await vm.quit();

    const off = await revertDomainSnapshot(context, { domain: DOMAIN, name: "disks" });
    expect([off.state, off.downtimeMs, await site.machines()]).toEqual(["inactive", 0, []]);
    const back = await site.diskCount("vda");
    expect(back).toBeLessThan(taken);

    // The record of a snapshot with memory says how; of a paused domain it comes back paused.
    const on = await revertDomainSnapshot(context, { domain: DOMAIN, name: "all" });
    expect([on.state, await site.status(), await site.machines()]).toEqual(["paused", "paused", [on.pid]]);
    const again = await revertDomainSnapshot(context, { domain: DOMAIN, name: "all", to: "running" });
    await counter.waitTurns(2);
    expect(counter.count()).toBeGreaterThan(taken);
    expect([counter.mismatches(), await counter.check()]).toEqual([[], expect.stringMatching(/^ok /)]);
    // Checkpoints before the snapshot go on: their bitmap records in the new overlays.
    const machine = await context.machines.open(DOMAIN);
    expect(machine?.process.pid).toBe(again.pid);
    await machine?.close();
    const bitmaps = await Promise.all((await site.document()).layers.map(({ active }) => bitmapsIn(active)));
    expect(bitmaps).toEqual([[checkpoint], [checkpoint]]);

    // Without memory the guest boots, from the disks of that moment.
    const plain = { domain: DOMAIN, name: "disks", to: "running" } as const;
    // Disk vdb was raw then, which holds no bitmap.
    expect(await codeOf(revertDomainSnapshot(context, plain))).toMatch(
      /^FORCE_NEEDED: .*checkpoints end: c1$/,
    );
    const booted = await revertDomainSnapshot(context, { ...plain, force: true });
    expect(await site.machines()).toEqual([booted.pid]);
    const { console } = counter;
    const ready = await console.waitFor(/^READY count=(\d+)/, {
      timeoutMs: 120_000,
      after: console.connectionStart,
    });
    expect(Number(ready[1])).toBe(back);
    expect(counter.mismatches()).toEqual([]);
  });
});

async function bitmapsIn(file: string): Promise<readonly string[]> {
  const text = await qemuImg("info", "-U", "--output=json", "-f", "qcow2", file);
  const info = JSON.parse(text) as { "format-specific": { data: { bitmaps?: { name: string }[] } } };
  return (info["format-specific"].data.bitmaps ?? []).map(({ name }) => name);
}
