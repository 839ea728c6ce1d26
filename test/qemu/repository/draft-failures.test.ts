import { execFile, fork } from "node:child_process";
import { once } from "node:events";
import { mkdir, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it, onTestFinished } from "vitest";
import { sweepRuntimeDirectories } from "../../../src/drivers/runtime-directory.js";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { dataRun, DOMAIN, noise, pull, RepositoryFixture, summary } from "./backup-fixture.js";

const run = promisify(execFile);
const SIZE = 64 * BLOCK_SIZE;

describe("a draft", () => {
  it("leaves nothing when it is discarded", async () => {
    const fixture = await RepositoryFixture.create();
    const lock = untilReleased(await fixture.repository.lock(DOMAIN));
    const draft = await fixture.begin("b1", new Map([["vda", { content: noise(SIZE, 1) }]]));
    draft.disk("vda").expect(dataRun(0, 2));
    await draft.disk("vda").write(0, noise(BLOCK_SIZE, 1));
    await draft.discard();
    await draft.discard();
    await lock.release();
    expect(await readdir(join(fixture.path, DOMAIN))).toEqual([".lock"]);
    expect(await readdir(fixture.runtimeRoot)).toEqual([]);
  });

  it("refuses content that was not announced, and a disk of which not all has come", async () => {
    const fixture = await RepositoryFixture.create();
    const lock = untilReleased(await fixture.repository.lock(DOMAIN));
    const draft = await fixture.begin("b1", new Map([["vda", { content: noise(SIZE, 1) }]]));
    const sink = draft.disk("vda");
    sink.expect(dataRun(4, 2));
    expect(() => sink.expect(dataRun(5))).toThrow(/whole blocks behind the last/);
    await expect(sink.write(0, noise(BLOCK_SIZE, 1))).rejects.toMatchObject({ code: "INTERNAL" });
    await expect(sink.writeZeroes(4 * BLOCK_SIZE, BLOCK_SIZE)).rejects.toMatchObject({ code: "INTERNAL" });
    await sink.write(4 * BLOCK_SIZE, noise(BLOCK_SIZE, 1));
    await sink.write(4 * BLOCK_SIZE, noise(BLOCK_SIZE, 1));
    await expect(sink.finish({ readBytes: 0, durationMs: 0 })).rejects.toThrow(/content of 2 data/);
    await expect(draft.publish(summary("full", 1))).rejects.toMatchObject({ code: "INTERNAL" });
    await draft.discard();
    await lock.release();
    expect(await fixture.repository.list()).toEqual([]);
  });

  it("of a backup that exists is refused", async () => {
    const fixture = await RepositoryFixture.create();
    const entry = await fixture.backUp("b1", { vda: { content: noise(SIZE, 1) } });
    await expect(fixture.backUp("b1", { vda: { content: noise(SIZE, 1) } })).rejects.toMatchObject({
      code: "ALREADY_EXISTS",
    });
    expect(await fixture.repository.list()).toEqual([entry]);
  });

  it("whose writer was killed is not listed, and the next lock removes it", async () => {
    const fixture = await RepositoryFixture.create();
    const child = forkHolder(fixture, "draft");
    await once(child, "message");
    const domain = join(fixture.path, DOMAIN);
    expect((await readdir(domain)).sort()).toEqual([".lock", ".partial-b1"]);
    await expect(fixture.repository.lock(DOMAIN)).rejects.toMatchObject({ code: "REPOSITORY_BUSY" });
    child.kill("SIGKILL");
    await once(child, "exit");
    expect(await fixture.repository.list()).toEqual([]);
    const lock = await fixture.repository.lock(DOMAIN);
    await lock.release();
    expect(await readdir(domain)).toEqual([".lock"]);
    expect(await sweepRuntimeDirectories(fixture.runtimeRoot)).toHaveLength(1);
    expect(await readdir(fixture.runtimeRoot)).toEqual([]);
  });

  it("fails with the daemon's words when that is killed, and is not listed", async () => {
    const fixture = await RepositoryFixture.create();
    const lock = untilReleased(await fixture.repository.lock(DOMAIN));
    const content = noise(SIZE, 1);
    const draft = await fixture.begin("b1", new Map([["vda", { content }]]));
    await pull(draft, "vda", { content });
    const { findProcesses } = await import("../../../src/drivers/process-owner.js");
    const [daemon] = await findProcesses((args) => args.some((arg) => arg.includes(fixture.runtimeRoot)));
    if (daemon === undefined) throw new Error("Expected a daemon");
    process.kill(daemon.pid, "SIGKILL");
    await expect(draft.publish(summary("full", 1))).rejects.toThrow(/was ended by SIGKILL/);
    await draft.discard();
    await lock.release();
    expect(await readdir(join(fixture.path, DOMAIN))).toEqual([".lock"]);
  });
});

describe("a repository on a full file system", () => {
  it("fails with NO_SPACE and lists nothing", async (context) => {
    const fixture = await RepositoryFixture.create();
    const mount = join(fixture.path, "mount");
    await mkdir(mount);
    try {
      await run("mount", ["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", mount]);
    } catch {
      context.skip("mounting a tmpfs is refused here");
    }
    onTestFinished(() => run("umount", [mount]).then(() => undefined));
    const small = await RepositoryFixture.create(mount);
    const content = noise(SIZE, 1);
    await expect(small.backUp("b1", { vda: { content } })).rejects.toMatchObject({ code: "NO_SPACE" });
    expect(await readdir(join(mount, DOMAIN))).toEqual([".lock"]);
    expect(await small.repository.list()).toEqual([]);
  });
});

describe("DirectoryRepository.lock", () => {
  it("keeps out a second process until the first ends, and says who holds it", async () => {
    const fixture = await RepositoryFixture.create();
    const child = forkHolder(fixture, "lock");
    await once(child, "message");
    await expect(fixture.repository.lock(DOMAIN)).rejects.toThrow(new RegExp(`process ${child.pid ?? 0} on`));
    const other = await fixture.repository.lock("other");
    await other.release();
    child.kill("SIGKILL");
    await once(child, "exit");
    const lock = await fixture.repository.lock(DOMAIN);
    await expect(fixture.repository.lock(DOMAIN)).rejects.toMatchObject({ code: "REPOSITORY_BUSY" });
    await lock.release();
  });

  it("removes what an interrupted removal left", async () => {
    const fixture = await RepositoryFixture.create();
    await fixture.backUp("b1", { vda: { content: noise(SIZE, 1) } });
    await mkdir(join(fixture.path, DOMAIN, ".deleted-b0"));
    await (await fixture.repository.lock(DOMAIN)).release();
    expect(await readdir(join(fixture.path, DOMAIN))).toEqual([".lock", "b1"]);
  });
});

describe("damage", () => {
  it("of a byte of an image is found by its block", async () => {
    const fixture = await RepositoryFixture.create();
    const entry = await fixture.backUp("b1", { vda: { content: noise(SIZE, 1) } });
    const image = await readFile(fixture.file("b1", "vda.qcow2"));
    const at = image.indexOf(noise(SIZE, 1).subarray(10 * BLOCK_SIZE, 11 * BLOCK_SIZE));
    expect(at).toBeGreaterThan(0);
    await flipByte(fixture.file("b1", "vda.qcow2"), at + 100);
    expect(await fixture.verify(entry, "vda")).toBe(10 * BLOCK_SIZE);
  });

  it("of a byte of a digest file, wherever, is found when the digests are asked for", async () => {
    const fixture = await RepositoryFixture.create();
    const entry = await fixture.backUp("b1", { vda: { content: noise(SIZE, 1) } });
    const path = fixture.file("b1", "vda.digests");
    const intact = await readFile(path);
    for (const at of [0, 20, 100, intact.length - 80, intact.length - 50, intact.length - 1]) {
      await flipByte(path, at);
      await using backup = await fixture.repository.open(entry);
      await expect(backup.expectations("vda"), `byte ${at}`).rejects.toMatchObject({ code: "DAMAGED" });
      await writeFile(path, intact);
    }
    await rm(path);
    await using backup = await fixture.repository.open(entry);
    await expect(backup.expectations("vda")).rejects.toThrow(/is missing/);
  });

  it("of an image's header or place is found before anything is served", async () => {
    const fixture = await RepositoryFixture.create();
    const entry = await fixture.backUp("b1", { vda: { content: noise(SIZE, 1) } });
    const path = fixture.file("b1", "vda.qcow2");
    await flipByte(path, 0);
    await expect(fixture.repository.open(entry)).rejects.toMatchObject({ code: "DAMAGED" });
    await rm(path);
    await expect(fixture.repository.open(entry)).rejects.toMatchObject({ code: "DAMAGED" });
    await mkdir(path);
    await expect(fixture.repository.open(entry)).rejects.toMatchObject({ code: "DAMAGED" });
  });

  it("of a parent's manifest makes its children unusable, with the reason", async () => {
    const fixture = await RepositoryFixture.create();
    const content = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content } });
    const child = await fixture.backUp("b2", { vda: { content, runs: [dataRun(1)] } }, full);
    await flipByte(fixture.file("b1", "manifest.json"), 0);
    await expect(fixture.repository.open(child)).rejects.toThrow(
      /backup b1 is damaged: its manifest is not JSON/,
    );
  });
});

async function flipByte(path: string, position: number): Promise<void> {
  const file = await open(path, "r+");
  try {
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, position);
    byte[0] = (byte[0] ?? 0) ^ 0x10;
    await file.write(byte, 0, 1, position);
  } finally {
    await file.close();
  }
}

function forkHolder(fixture: RepositoryFixture, what: "lock" | "draft") {
  const child = fork(
    fileURLToPath(new URL("hold-repository.ts", import.meta.url)),
    [what, fixture.path, fixture.runtimeRoot],
    {
      execArgv: ["--import", "tsx", "--conditions=source"],
    },
  );
  untilTestEnds({
    [Symbol.asyncDispose]: async () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGKILL");
      await once(child, "exit");
    },
  });
  return child;
}

function untilReleased<T extends { release(): Promise<void> }>(lock: T): T {
  onTestFinished(() => lock.release());
  return lock;
}
