import { readdir } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import { findDaemons } from "../../src/drivers/end-daemon.js";
import { systemClock } from "../../src/drivers/system-clock.js";
import { runBackup } from "../../src/services/backup-run.js";
import type { ServiceContext } from "../../src/services/context.js";
import { startSite, type Site } from "../support/site.js";

const MIB = 1024 * 1024;
const DISK_BYTES = 64 * MIB;
/** More than a socket and the daemon's requests in flight take, so that the copy stands still in the midst. */
const UNREAD = 60 * MIB;

async function startScene(exports: "auto" | "staged") {
  const disk = { format: "qcow2", sizeBytes: DISK_BYTES, filledBytes: DISK_BYTES } as const;
  const at = await startSite({
    exports,
    scratch: { limit: "3M" },
    disks: ["vda", "vdb"].map((target) => ({ target, ...disk })),
  });
  const ignore = (): void => undefined;
  const log = { debug: ignore, info: ignore, warn: ignore };
  const context = await startAgent(await loadConfig(at.configPath), log);
  const sleep = (_ms: number, signal: AbortSignal) => delay(20, undefined, { signal });
  // A copy by QEMU is still far from its end when the daemon hangs.
  const limits = { ...context.limits, readBytesPerSecond: 16 * MIB };
  return { at, context: { ...context, limits, clock: { ...systemClock, sleep } } };
}

/**
 * The repository's storage daemon takes nothing any more: of what is pulled, from before the first read on; of what is pushed,
 * once QEMU copies both disks, for it does not connect to a daemon that hangs.
 */
async function startHung(at: Site, context: ServiceContext, signal?: AbortSignal) {
  let hang: () => void = () => undefined;
  const hung = new Promise<void>((resolve) => (hang = resolve));
  let stopped: Promise<void> | undefined;
  const stop = (): Promise<void> => (stopped ??= stopDaemons(at).then(hang));
  const underWay = new Set<string>();
  const open: ServiceContext["readers"]["open"] = async (...args) => {
    const reader = await context.readers.open(...args);
    await stop();
    return reader;
  };
  const ended = runBackup(
    { ...context, readers: { open } },
    {
      domain: "vm",
      ...(signal === undefined ? {} : { signal }),
      onProgress: (progress) => {
        if (progress.step === "disk") underWay.add(progress.target);
        if (underWay.size === 2) void stop();
      },
    },
  ).catch((error: unknown) => error);
  await Promise.race([hung, ended]);
  await standStill(at);
  return { ended };
}

async function stopDaemons(at: Site): Promise<void> {
  const directories = await readdir(at.directory.file("run"));
  for (const name of directories.filter((each) => each.startsWith("p-"))) {
    for (const { pid } of await findDaemons(at.directory.file(`run/${name}`))) process.kill(pid, "SIGSTOP");
  }
}

/** QEMU's copies, if there are any, have come as far as they will. */
async function standStill({ vm }: Site): Promise<void> {
  let before = "";
  for (;;) {
    const now = JSON.stringify(await vm.qmp("query-jobs"));
    if (now === before) return;
    before = now;
    await delay(300);
  }
}

async function guestWrites({ vm }: Site, offset: number, length: number): Promise<void> {
  for (const target of ["vda", "vdb"]) {
    expect(await vm.guestWrite(target, offset, length, 0xed)).toMatchObject({ ok: true });
  }
}

async function expectNothingLeft(at: Site): Promise<void> {
  expect((await at.files()).filter((name) => !name.startsWith("backups/"))).toEqual([]);
  expect((await at.files()).filter((name) => name.includes(".partial"))).toEqual([]);
  const { nodes, devices, bitmaps, exports, jobs } = await at.vm.blockState();
  expect([...nodes, ...devices].filter((item) => item.includes("fleece"))).toEqual([]);
  expect([...bitmaps, ...exports, ...jobs]).toEqual([]);
}

describe.each(["auto", "staged"] as const)("a repository that hangs, exports: %s", (exports) => {
  it("does not keep a cancelled backup from ending, with the guest's disks given back", async () => {
    const { at, context } = await startScene(exports);
    const enough = new AbortController();
    const { ended } = await startHung(at, context, enough.signal);
    enough.abort(new Error("Enough"));
    expect(await ended).toMatchObject({ message: "Enough" });
    await guestWrites(at, 0, 8 * MIB);
    await expectNothingLeft(at);
  });

  it("does not keep the limit of scratch space from ending a backup", async () => {
    const { at, context } = await startScene(exports);
    const { ended } = await startHung(at, context);
    await guestWrites(at, UNREAD, 2 * MIB);
    expect(await ended).toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: expect.stringMatching(
        /given up: its scratch space of .* is over the limit of 3 MiB/,
      ) as string,
    });
    await guestWrites(at, 0, 8 * MIB);
    await expectNothingLeft(at);
  });
});
