import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { recoverAll } from "../../../src/services/recovery.js";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { BoundProcess } from "../../support/bound-process.js";
import { type CounterSite, DOMAIN, startCounterSite } from "./support/counter-site.js";
import { ALL_FAULTS } from "../../support/sample.js";

const preload = fileURLToPath(new URL("../../faults/support/steps.mjs", import.meta.url));
const script = fileURLToPath(new URL("support/revert-command.ts", import.meta.url));

const JOURNAL = String.raw`^(rename|rm) \S+/state/operations/\S+\.json$`;
/** What changes files, sockets, processes and guests; the loader's own programs are none of them. */
const STEPS = String.raw`^(rename |link |unlink |rm \S+/state/operations|spawn (qemu-img create|qemu-system)|qmp (stop|cont|migrate-incoming))`;

interface Kill {
  readonly match: string;
  readonly at: number;
  readonly when: "before" | "after";
}

/** How long a guard, a guest under TCG and this host may need; it ends a test that hangs. */
const PATIENCE_MS = 60_000;

async function revertAndKill(site: CounterSite, kill: Kill): Promise<boolean> {
  const steps = { ...kill, action: "kill", log: site.directory.file("steps.log") };
  const env = {
    ...process.env,
    NODE_OPTIONS: `--import ${preload}`,
    FLEECE_TEST_STEPS: JSON.stringify(steps),
  };
  const args = ["--conditions=source", "--import", "tsx", script, site.configPath, DOMAIN, "s1"];
  const command = await BoundProcess.start(process.execPath, args, { env });
  const end = await command.ended;
  if (end.signal === "SIGKILL") return true;
  expect(end.exitCode, command.stderr).toBe(0);
  return false;
}

/** One QEMU, whose guest counts on, and nothing else left. */
async function expectOneGuest(site: CounterSite): Promise<number> {
  const { context } = site;
  expect(await context.store.operations(DOMAIN)).toEqual([]);
  const machines = await site.machines();
  expect(machines).toHaveLength(1);
  expect(await site.status()).toBe("running");
  const counts = [await site.diskCount("vda"), await site.diskCount("vdb")];
  await expect
    .poll(() => site.diskCount("vda"), { timeout: PATIENCE_MS })
    .toBeGreaterThan(counts[0] ?? Infinity);
  await expect
    .poll(() => site.diskCount("vdb"), { timeout: PATIENCE_MS })
    .toBeGreaterThan(counts[1] ?? Infinity);
  expect(site.guest.counter.mismatches()).toEqual([]);
  const document = await site.document();
  const needed = [
    ...document.layers.map(({ active }) => active),
    ...document.snapshots.flatMap(({ disks }) => disks.map(({ file }) => file)),
  ];
  const overlays = (await site.files())
    .filter((name) => name.endsWith(".qcow2"))
    .map((name) => site.directory.file(name));
  expect(overlays.filter((file) => !needed.includes(file))).toEqual([]);
  expect((await site.files()).filter((name) => name.includes("/.") || name.startsWith("."))).toEqual([]);
  return machines[0] ?? 0;
}

/** False if the revert came to its end. */
async function killOnce(site: CounterSite, kill: Kill): Promise<boolean> {
  const [before] = await site.machines();
  const killed = await revertAndKill(site, kill);
  const [record] = await site.context.store.operations(DOMAIN);
  const subject = record?.subject;
  const isSwitched = subject?.kind === "domain-snapshot-revert" && subject.phase === "switched";
  await recoverAll(site.context);
  const after = await expectOneGuest(site);
  if (record !== undefined) expect(after === before, JSON.stringify(kill)).toBe(!isSwitched);
  return killed;
}

describe("An agent that is killed while it reverts", () => {
  it("leaves one guest: the old one before the decision, the new one after it", async () => {
    const site = await startCounterSite();
    await site.takeSnapshot("s1");
    await site.guest.counter.waitTurns(3);
    if (!ALL_FAULTS) {
      // Once on each side of the decision. The guest is held: the guard continues it before anybody else does anything.
      const { vm } = site.guest;
      expect(await revertAndKill(site, { match: "^qmp migrate-incoming$", at: 1, when: "before" })).toBe(
        true,
      );
      const statusOfOld = async () => ((await vm.qmp("query-status")) as { status: string }).status;
      await expect.poll(statusOfOld, { timeout: PATIENCE_MS }).toBe("running");
      expect(await site.machines()).toHaveLength(2);
      await recoverAll(site.context);
      expect(await expectOneGuest(site)).toBe(vm.pid);
      // Its record says that the revert is decided, and nothing of that has been done.
      expect(await killOnce(site, { match: JOURNAL, at: 5, when: "after" })).toBe(true);
      expect(await site.machines()).not.toEqual([vm.pid]);
      return;
    }
    for (const kind of [
      { match: JOURNAL, when: "after" },
      { match: STEPS, when: "before" },
    ] as const) {
      let at = 1;
      while (await killOnce(site, { ...kind, at })) at++;
      expect(at - 1, "kills").toBeGreaterThan(kind.when === "after" ? 5 : 12);
    }
  }, 3_600_000);
});

/** Pids of the QEMUs of a site, at once: for callbacks. */
function machinesNow(site: CounterSite): number[] {
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return pids.map(Number).filter((pid) => {
    try {
      const args = readFileSync(`/proc/${pid}/cmdline`, "utf8");
      return args.startsWith("qemu-system-") && args.includes(`${site.directory.path}/`);
    } catch {
      return false;
    }
  });
}

describe("A QEMU that is killed while the memory is loaded", () => {
  it("costs nothing if it is the new one, and changes nothing if it is the old one", async () => {
    const site = await startCounterSite();
    const { context, guest } = site;
    await site.takeSnapshot("s1");
    const oldPid = guest.vm.pid;
    const request = { domain: DOMAIN, name: "s1" };
    const killing = (isVictim: (pid: number) => boolean) => ({
      onProgress: ({ phase }: { readonly phase: string }): void => {
        if (phase === "loading")
          for (const pid of machinesNow(site)) if (isVictim(pid)) process.kill(pid, "SIGKILL");
      },
    });
    const failed = revertDomainSnapshot(
      context,
      request,
      killing((pid) => pid !== oldPid),
    );
    await expect(failed).rejects.toMatchObject({
      code: "MEMORY_LOAD_FAILED",
      message: expect.stringContaining("was ended by SIGKILL") as unknown,
    });
    expect(await expectOneGuest(site)).toBe(oldPid);

    const outcome = await revertDomainSnapshot(
      context,
      request,
      killing((pid) => pid === oldPid),
    );
    expect(await expectOneGuest(site)).toBe(outcome.pid);
    await guest.counter.waitTurns(2);
    expect(await guest.counter.check()).toMatch(/^ok /);
  });
});
