import { createHash } from "node:crypto";
import { readdir } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import type { ExportAddress } from "../../src/model/snapshot-plan.js";
import type { BlockReader } from "../../src/ports/block-io.js";
import { restoreBackup } from "../../src/services/backup-read.js";
import { runBackup } from "../../src/services/backup-run.js";
import { startExports } from "../../src/services/block-exports.js";
import { createBlockSnapshot, deleteBlockSnapshot } from "../../src/services/block-snapshots.js";
import type { ServiceContext } from "../../src/services/context.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { CHANGEABLE_HARDWARE, DOMAIN_CHANGES, PROXIED_CHANGES } from "../support/domain-changes.js";
import type { ChangeableSite, DomainChange } from "../support/domain-changes.js";
import { copyToRaw, fileDigest } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import { QmpProxy } from "../support/qmp-proxy.js";
import { startSite } from "../support/site.js";
import { ALL_FAULTS } from "../support/sample.js";

const KIB = 1024;
const MIB = 1024 * KIB;
const TARGETS = ["vda", "vdb"];

/** How it ends for those who read: whole and exact, or with a code and words that name the cause. */
type End = "exact" | readonly [code: string, words: RegExp];
/**
 * The next backup: its disks' modes follow from the bitmaps. `gone` and `overlaid` are refused for a disk that the domain lacks,
 * or has in another file; the other disk can be backed up.
 */
type Next = "changes" | "compare" | "gone" | "overlaid";

const STOPPED = ["SNAPSHOT_BROKEN", /Domain vm was stopped after .*QEMU's reason: host-qmp-quit/] as const;
const KILLED = ["SNAPSHOT_BROKEN", /Domain vm was stopped .*it was killed, or crashed/] as const;
const ANEW = /The filter of disk vd[ab] is gone from QEMU: it was started anew/;
const OVERLAID = ["SNAPSHOT_BROKEN", /node overlay on disk vda, over the filter/] as const;

const ENDS: Readonly<Record<DomainChange, readonly [backup: End, next: Next]>> = {
  pause: ["exact", "changes"],
  "pause and resume": ["exact", "changes"],
  reset: ["exact", "changes"],
  "guest panic, QEMU pauses": ["exact", "changes"],
  "guest panic, QEMU ends": [
    ["SNAPSHOT_BROKEN", /was stopped after .*QEMU's reason: guest-panic/],
    "changes",
  ],
  shutdown: [STOPPED, "changes"],
  "shutdown and start": [["SNAPSHOT_BROKEN", /host-qmp-quit|started anew|was stopped/], "changes"],
  "kill -9 of QEMU": [KILLED, "compare"],
  "kill -9 of QEMU and start": [["SNAPSHOT_BROKEN", /started anew|killed, or crashed/], "compare"],
  "hot-plug of a disk": ["exact", "changes"],
  "hot-unplug of a disk that is read": ["exact", "gone"],
  "block_resize to more": ["exact", "changes"],
  "block_resize to less": ["exact", "changes"],
  "block_resize of the disk's node": ["exact", "changes"],
  migration: ["exact", "changes"],
  "another tool's backup job": ["exact", "changes"],
  "another tool's mirror job": ["exact", "changes"],
  "another tool's external snapshot": ["exact", "changes"],
  "another tool's external snapshot over the filter": [OVERLAID, "overlaid"],
  "the monitor hangs up": ["exact", "changes"],
};

/** What a vendor is told who reads to the end and then claims success, where it differs from what a backup is told. */
const VENDOR_ENDS: Partial<Readonly<Record<DomainChange, End>>> = {
  "guest panic, QEMU ends": ["SNAPSHOT_BROKEN", /Domain vm was stopped/],
  shutdown: ["SNAPSHOT_BROKEN", /Domain vm was stopped/],
  "shutdown and start": ["SNAPSHOT_BROKEN", ANEW],
  "kill -9 of QEMU": ["SNAPSHOT_BROKEN", /Domain vm was stopped/],
  "kill -9 of QEMU and start": ["SNAPSHOT_BROKEN", ANEW],
};

async function startScene(change: DomainChange) {
  const site = await startSite({
    extraArguments: CHANGEABLE_HARDWARE,
    disks: [
      { target: "vda", format: "qcow2", sizeBytes: 8 * MIB, filledBytes: 8 * MIB },
      { target: "vdb", format: "qcow2", sizeBytes: 8 * MIB, filledBytes: 8 * MIB, bus: "scsi" },
    ],
  });
  const isProxied = PROXIED_CHANGES.has(change);
  const qmp = isProxied ? site.directory.file("proxy.qmp") : site.vm.qmpPath;
  const proxy = isProxied ? untilTestEnds(await QmpProxy.listen(qmp, site.vm.qmpPath)) : undefined;
  await writeConfig(site.directory.path, {
    domains: [{ ...domainConfig("vm", site.vm), qmp }],
    more: { runtimeDir: site.directory.file("run") },
  });
  const ignore = (): void => undefined;
  const context = await startAgent(await loadConfig(site.configPath), {
    debug: ignore,
    info: ignore,
    warn: ignore,
  });
  return new Scene({ ...site, ...(proxy === undefined ? {} : { proxy }) }, context);
}

class Scene {
  readonly at: ChangeableSite;
  readonly context: ServiceContext;
  #pattern = 1;

  constructor(at: ChangeableSite, context: ServiceContext) {
    this.at = at;
    this.context = context;
  }

  /** The guest writes in several places on each disk that it has, and none of it may fail. */
  async touch(): Promise<void> {
    if (!this.at.vm.running) return;
    const pattern = this.#pattern++;
    const devices = (await this.at.vm.blockState()).devices.join(" ");
    for (const target of TARGETS.filter((name) => devices.includes(name))) {
      for (const offset of [0, 3 * MIB + 512, 6 * MIB]) {
        expect(await this.at.vm.guestWrite(target, offset, MIB, pattern)).toMatchObject({ ok: true });
      }
      expect(await this.at.vm.guestFlush(target)).toMatchObject({ ok: true });
    }
  }

  /** What the disks hold now; the guest must be quiet. */
  async content(): Promise<string[]> {
    return Promise.all(
      TARGETS.map(async (target) => {
        const file = this.at.directory.file(`${target}.now.raw`);
        await copyToRaw(this.at.vm.disk(target).path, "qcow2", file);
        return fileDigest(file);
      }),
    );
  }

  async restored(id: string): Promise<string[]> {
    const directory = this.at.directory.file(`restored-${id}`);
    await restoreBackup(this.context, { id, directory, format: "raw" });
    return Promise.all(TARGETS.map((target) => fileDigest(`${directory}/${target}.raw`)));
  }

  /** The services, but after the first read the domain changes, the guest writes, and only then are the others carried out. */
  changedBy(change: DomainChange): { context: ServiceContext; happened: () => Promise<void> } {
    let first = true;
    let done: Promise<void> | undefined;
    const perform = async (): Promise<void> => {
      await DOMAIN_CHANGES[change](this.at);
      await this.touch();
    };
    const { readers } = this.context;
    const open = async (...args: Parameters<typeof readers.open>): Promise<BlockReader> => {
      const reader = await readers.open(...args);
      const read: BlockReader["read"] = async (...request) => {
        if (!first) await (done ??= perform());
        first = false;
        return reader.read(...request);
      };
      return {
        sizeBytes: reader.sizeBytes,
        extents: (signal) => reader.extents(signal),
        read,
        release: (...request) => reader.release(...request),
        close: () => reader.close(),
        [Symbol.asyncDispose]: () => reader.close(),
      };
    };
    return {
      context: { ...this.context, readers: { open } },
      happened: () => done ?? Promise.reject(new Error("Nothing was read twice")),
    };
  }

  /**
   * Nothing of an operation is in QEMU or beside it, and checkpoints are those of the listed backups. Those of a disk that the
   * domain does not have any more, or that an overlay has made read-only, stay as they are.
   */
  async expectNothingLeft(checkpoints: readonly string[], next: Next): Promise<void> {
    const { at } = this;
    expect(await readdir(at.directory.file("scratch"))).toEqual([]);
    expect((await at.files()).filter((name) => !name.startsWith("backups/"))).toEqual([]);
    if (!at.vm.running) return;
    const { nodes, exports, devices, bitmaps } = await at.vm.blockState();
    expect([...nodes, ...exports, ...devices].filter((item) => item.includes("fleece"))).toEqual([]);
    const kept = next === "overlaid" ? "vda-format" : "";
    const names = bitmaps.filter(({ node }) => node !== kept).map(({ name }) => name.split(":").at(-1) ?? "");
    expect(names.filter((name) => !checkpoints.includes(name))).toEqual([]);
    expect(bitmaps.filter(({ busy }) => busy)).toEqual([]);
  }

  /** The next backup, of the running domain, is what the table says and shows what the disks hold then. */
  async expectNext(next: Next, parent: string): Promise<void> {
    const { at } = this;
    if (!at.vm.running) await at.vm.restart();
    await this.touch();
    const outcome = await runBackup(this.context, { domain: "vm" }).catch((error: unknown) => error);
    if (next === "gone" || next === "overlaid") {
      const [lost, other] = next === "gone" ? ["vdb", "vda"] : ["vda", "vdb"];
      const named = `Domain vm has no disk ${lost}: it is ${at.vm.disk(lost).path} in the configuration`;
      expect(outcome).toMatchObject({
        code: "DISK_NOT_FOUND",
        message: expect.stringContaining(named) as string,
        facts: { domain: "vm", target: lost },
      });
      const { manifest } = await runBackup(this.context, { domain: "vm", disks: [other] });
      expect(manifest).toMatchObject({ level: "incremental", disks: [{ target: other, mode: "changes" }] });
      await this.#expectNextUnlisted(next);
      return;
    }
    expect(outcome).toMatchObject({ manifest: { level: "incremental", parent } });
    const { id, manifest } = outcome as Awaited<ReturnType<typeof runBackup>>;
    expect(manifest.disks.map(({ mode }) => mode)).toEqual([next, next]);
    expect(await this.restored(id)).toEqual(await this.content());
  }

  /** Where the configuration lists no disks, the next backup takes those that there are, and the guest's disk in its new file. */
  async #expectNextUnlisted(next: "gone" | "overlaid"): Promise<void> {
    const { at } = this;
    await writeConfig(at.directory.path, {
      domains: [{ name: "vm", qmp: at.vm.qmpPath }],
      more: { runtimeDir: at.directory.file("run") },
    });
    const ignore = (): void => undefined;
    const context = await startAgent(await loadConfig(at.configPath), {
      debug: ignore,
      info: ignore,
      warn: ignore,
    });
    const { id, manifest } = await runBackup(context, { domain: "vm" });
    expect(manifest.disks.map(({ target, mode }) => `${target} ${mode}`)).toEqual(
      next === "gone" ? ["vda changes"] : ["vda compare", "vdb changes"],
    );
    if (next === "gone") return;
    const overlay = at.directory.file("overlay.raw");
    await copyToRaw(at.directory.file("overlay.qcow2"), "qcow2", overlay);
    const restored = at.directory.file("restored-overlay");
    await restoreBackup(context, { id, directory: restored, format: "raw" });
    expect(await fileDigest(`${restored}/vda.raw`)).toBe(await fileDigest(overlay));
  }
}

function expectEnd(outcome: unknown, end: End): void {
  if (end === "exact") expect(outcome).not.toBeInstanceOf(Error);
  else expect(outcome).toMatchObject({ code: end[0], message: expect.stringMatching(end[1]) as string });
}

const CHANGES = Object.keys(ENDS) as DomainChange[];

/** `npm run test:faults` tries each change with each of them; `npm test` with one, in turn. */
const WORKS = ["full", "incremental", "vendor"] as const;

describe.each(CHANGES)("%s", (change) => {
  const [backupEnd, next] = ENDS[change];

  const works = WORKS.filter((_, index) => ALL_FAULTS || index === CHANGES.indexOf(change) % WORKS.length);

  it.each(works.filter((work) => work !== "vendor"))("in the pull of a backup: %s", async (level) => {
    const scene = await startScene(change);
    const base = await runBackup(scene.context, { domain: "vm" });
    await scene.touch();
    const moment = await scene.content();
    const { context, happened } = scene.changedBy(change);
    const outcome = await runBackup(context, { domain: "vm", level }).catch((error: unknown) => error);
    await happened();
    expectEnd(outcome, backupEnd);
    const listed = [base.id];
    if (backupEnd === "exact") {
      const { id } = outcome as typeof base;
      expect(await scene.restored(id)).toEqual(moment);
      listed.push(id);
    }
    const stored = (await scene.context.repositories.get("default")?.list("vm")) ?? [];
    expect(stored.map(({ id }) => id)).toEqual(listed);
    await scene.expectNothingLeft(listed, next);
    await scene.expectNext(next, listed.at(-1) ?? "");
  });

  it.each(works.filter((work) => work === "vendor"))(
    "while a %s reads the exports of a block snapshot",
    async () => {
      const scene = await startScene(change);
      const base = await runBackup(scene.context, { domain: "vm" });
      await scene.touch();
      const moment = await scene.content();
      const { context, happened } = scene.changedBy(change);
      const name = "s";
      await createBlockSnapshot(context, { domain: "vm", name, checkpoint: {}, leaseMs: 600_000 });
      const addresses = await startExports(context, { domain: "vm", snapshot: name });
      const read = await Promise.all(addresses.map((address) => readAll(context, address))).catch(
        (error: unknown) => error,
      );
      await happened();
      const end = VENDOR_ENDS[change] ?? backupEnd;
      if (end === "exact") expect(read).toEqual(moment);
      const outcome = await deleteBlockSnapshot(context, "vm", name, "success").catch(
        (error: unknown) => error,
      );
      expectEnd(outcome, end);
      await scene.expectNothingLeft(end === "exact" ? [base.id, name] : [base.id], next);
      await scene.expectNext(next, base.id);
    },
  );
});

async function readAll({ readers }: ServiceContext, address: ExportAddress): Promise<string> {
  await using reader = await readers.open(address);
  const digest = createHash("sha256");
  for (let offset = 0; offset < reader.sizeBytes; offset += MIB)
    digest.update(await reader.read(offset, MIB));
  return digest.digest("hex");
}
