import { chmod, mkdir, readdir, readFile, symlink, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { processOwner } from "../../../src/drivers/process-owner.js";
import { StateDirectory } from "../../../src/drivers/state-directory.js";
import type { OperationRecord } from "../../../src/ports/state-store.js";
import { temporaryDirectory } from "../../support/lifetime.js";

async function store(): Promise<{ path: string; state: StateDirectory }> {
  const { path } = await temporaryDirectory();
  return { path, state: new StateDirectory(path) };
}

function record(state: StateDirectory, id: string, startedAtMs: number): OperationRecord {
  const subject = { kind: "restore", backupId: "b" } as const;
  return { schemaVersion: 1, id, domain: "vm", startedAtMs, subject, owner: state.self(), undo: [] };
}

describe("StateDirectory", () => {
  it("gives back what was saved, oldest first, replaced as a whole", async () => {
    const { state } = await store();
    await state.save(record(state, "b", 2));
    await state.save(record(state, "a", 1));
    const changed = { ...record(state, "b", 2), undo: [{ kind: "vm-held" as const }] };
    await state.save(changed);
    expect(await state.operations("vm")).toEqual([record(state, "a", 1), changed]);
    expect(await state.operations()).toHaveLength(2);
    expect(await state.operations("other")).toEqual([]);
  });

  it("makes its directories for several domains at the same time", async () => {
    const { path } = await temporaryDirectory();
    for (let round = 0; round < 10; round++) {
      const state = new StateDirectory(`${path}/${round}/state`);
      const domains = Array.from({ length: 8 }, (_, index) => `vm${index}`);
      await Promise.all(domains.map((domain) => state.save({ ...record(state, "a", 1), domain })));
      expect(await state.operations()).toHaveLength(8);
    }
  });

  it("lists the journal while another process removes a record", async () => {
    const { path, state } = await store();
    await mkdir(`${path}/operations/vm`, { recursive: true, mode: 0o700 });
    await symlink("gone", `${path}/operations/vm/abc.json`);
    await expect(state.operations("vm")).resolves.toEqual([]);
  });

  it("removes a record of a domain that never had one", async () => {
    const { state } = await store();
    await expect(state.remove({ domain: "vm", id: "x" })).resolves.toBeUndefined();
  });

  it("removes what a killed writer left half written, and only that", async () => {
    const { path, state } = await store();
    await state.save(record(state, "a", 1));
    const { pid, startTicks } = processOwner();
    const living = `b.${pid}-${startTicks}.tmp`;
    for (const name of [living, `c.${pid}-${startTicks - 1}.tmp`, "d.4194999-7.tmp"]) {
      await writeFile(`${path}/operations/vm/${name}`, "{");
    }
    expect(await state.operations("vm")).toHaveLength(1);
    expect(await readdir(`${path}/operations/vm`)).toHaveLength(4);
    await state.sweep();
    expect((await readdir(`${path}/operations/vm`)).toSorted()).toEqual(["a.json", living]);
  });

  it("refuses a record of a newer version and one that is no JSON, naming the file", async () => {
    const { path, state } = await store();
    await mkdir(`${path}/operations/vm`, { recursive: true, mode: 0o700 });
    for (const text of ['{"schemaVersion": 2}', "{", "[]"]) {
      await writeFile(`${path}/operations/vm/x.json`, text);
      await expect(state.operations("vm")).rejects.toMatchObject({
        code: "INTERNAL",
        message: expect.stringContaining("x.json") as string,
      });
    }
  });

  it("lets one hold a domain at a time, and says who", async () => {
    const { state } = await store();
    const lock = await state.lockDomain("vm", "the first");
    await expect(state.lockDomain("vm", "the second")).rejects.toMatchObject({
      code: "DOMAIN_BUSY",
      message: expect.stringContaining("the first") as string,
    });
    await (await state.lockDomain("other", "the second")).release();
    await lock.release();
    await lock.release();
    await (await state.lockDomain("vm", "the second")).release();
  });

  it("tells who holds a domain without taking the lock, making a file or writing to one", async () => {
    const { path, state } = await store();
    expect(await state.holder("vm")).toBeUndefined();
    expect(await readdir(path)).toEqual([]);
    const lock = await state.lockDomain("vm", "the first");
    const file = `${path}/domains/vm.lock`;
    const before = await readFile(file, "utf8");
    expect(await state.holder("vm")).toContain("the first");
    await lock.release();
    expect(await state.holder("vm")).toBeUndefined();
    expect(await readFile(file, "utf8")).toBe(before);
    await (await state.lockDomain("vm", "the second")).release();
  });

  it("tells whether it can be used, and makes nothing", async () => {
    const { path, state } = await store();
    await state.checkUsable();
    await new StateDirectory(`${path}/a/b`).checkUsable();
    expect(await readdir(path)).toEqual([]);
    await mkdir(`${path}/operations`);
    await chmod(`${path}/operations`, 0o777);
    await expect(state.checkUsable()).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
    await writeFile(`${path}/file`, "");
    for (const root of [`${path}/file`, `${path}/file/below`]) {
      await expect(new StateDirectory(root).checkUsable()).rejects.toMatchObject({ code: "PATH_NOT_FOUND" });
      await expect(new StateDirectory(root).lockDomain("vm", "it")).rejects.toMatchObject({
        code: "PATH_NOT_FOUND",
      });
    }
  });
});
