import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { changedBlocks as changedBlocksOf } from "../support/changed-blocks.js";
import { startAgent, VendorClient, type Fields } from "../support/agent.js";
import { copyToRaw, fileDigest } from "../support/image-tool.js";
import { startSite } from "../support/site.js";

const exec = promisify(execFile);
const BLOCK = 65_536;

const changedBlocks = ({ uri, changesContext }: Fields) =>
  changedBlocksOf(String(uri), String(changesContext));

/** A site with an agent, and what its guest and its clients do. */
async function workplace() {
  const at = await startSite();
  await startAgent(at);
  let pattern = 1;
  return {
    write: async (target: string, block: number): Promise<void> => {
      expect(await at.vm.guestWrite(target, block * BLOCK, 512, pattern++)).toMatchObject({ ok: true });
    },
    moment: async (target: string): Promise<string> => {
      await at.vm.guestFlush(target);
      const file = at.directory.file(`${target}.moment.raw`);
      await copyToRaw(at.directory.file(`${target}.qcow2`), "qcow2", file);
      return fileDigest(file);
    },
    read: async ({ target, uri }: Fields): Promise<string> => {
      const file = at.directory.file(`${String(target)}.copy.raw`);
      await exec("nbdcopy", [String(uri), file]);
      return fileDigest(file);
    },
    /** A client that backs up one disk, with checkpoints named like its snapshots. */
    client: (disk: string) => {
      const calls = new VendorClient(at);
      const domain = "vm";
      return {
        create: (name: string) =>
          calls.call("BlockSnapshots.Create", {
            domain,
            name,
            disks: [disk],
            checkpoint: {},
            leaseMs: 600_000,
          }),
        offer: async (snapshot: string, since: string): Promise<Fields> => {
          const { exports } = await calls.call("BlockExports.Start", { domain, snapshot, since });
          return (exports as readonly Fields[])[0] ?? {};
        },
        end: (name: string, failed = false) => calls.call("BlockSnapshots.Delete", { domain, name, failed }),
        forget: (name: string) => calls.call("Checkpoints.Delete", { domain, name }),
        stop: (snapshot: string) => calls.call("BlockExports.Stop", { domain, snapshot }),
      };
    },
  };
}

describe("two clients of one domain", () => {
  it("have their own moments and increments on different disks at the same time", async () => {
    const at = await workplace();
    const [a, b] = [at.client("vda"), at.client("vdb")];
    await a.create("a1");
    await b.create("b1");
    await a.end("a1");
    await b.end("b1");
    await at.write("vda", 3);
    await at.write("vdb", 5);
    const moments = [await at.moment("vda"), await at.moment("vdb")];
    await a.create("a2");
    await b.create("b2");
    await at.write("vda", 7);
    await at.write("vdb", 9);
    const vda = await a.offer("a2", "a1");
    const vdb = await b.offer("b2", "b1");
    expect([await changedBlocks(vda), await changedBlocks(vdb)]).toEqual([[3], [5]]);
    expect([await at.read(vda), await at.read(vdb)]).toEqual(moments);
    await a.end("a2", true);
    await at.write("vda", 8);
    expect([await changedBlocks(vdb), await at.read(vdb)]).toEqual([[5], moments[1]]);
    await b.end("b2");
    await a.create("a3");
    await b.create("b3");
    expect(await changedBlocks(await a.offer("a3", "a1"))).toEqual([3, 7, 8]);
    expect(await changedBlocks(await b.offer("b3", "b2"))).toEqual([9]);
    await b.end("b3", true);
    await a.end("a3");
  });

  it("have their own increments on the same disk in turn, and one's deletions cost the other nothing", async () => {
    const at = await workplace();
    const [a, b] = [at.client("vda"), at.client("vda")];
    await a.create("a1");
    await expect(b.create("b1")).rejects.toThrow(/ABORTED.*vda of domain vm is held by block snapshot a1/);
    await a.end("a1");
    await at.write("vda", 2);
    await b.create("b1");
    await b.end("b1");
    await at.write("vda", 4);
    await a.create("a2");
    expect(await changedBlocks(await a.offer("a2", "a1"))).toEqual([2, 4]);
    await a.end("a2");
    await at.write("vda", 6);
    await b.create("b2");
    expect(await changedBlocks(await b.offer("b2", "b1"))).toEqual([4, 6]);
    await b.end("b2");
    await at.write("vda", 8);
    await a.forget("a2");
    await a.forget("a1");
    const moment = await at.moment("vda");
    await b.create("b3");
    expect(await changedBlocks(await b.offer("b3", "b2"))).toEqual([8]);
    await b.stop("b3");
    const all = await b.offer("b3", "b1");
    expect([await changedBlocks(all), await at.read(all)]).toEqual([[4, 6, 8], moment]);
    await b.end("b3");
  });
});
