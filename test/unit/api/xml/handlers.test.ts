import { describe, expect, it } from "vitest";
import { listBlockExportsHandler, startBlockExportsHandler } from "../../../../src/api/block-exports.js";
import {
  createBlockSnapshotHandler,
  deleteBlockSnapshotHandler,
  getBlockSnapshotXmlHandler,
} from "../../../../src/api/block-snapshots.js";
import { getDomainXmlHandler } from "../../../../src/api/domains.js";
import { parseDomainXml } from "../../../../src/api/xml/domain-xml.js";
import { FakeWorld } from "../../../support/fake-agent.js";
import { temporaryDirectory } from "../../../support/lifetime.js";

const MIB = 1024 * 1024;
const SNAPSHOT = "<domainblocksnapshot><name>n</name></domainblocksnapshot>";
const request = (inner: string) => `<domainblockexport type='nbd'>${inner}</domainblockexport>`;

/** The real services over a domain in memory, which has the checkpoints cp0 and cp1. */
async function world() {
  const { path } = await temporaryDirectory();
  const disks = [
    { target: "vda", sizeBytes: MIB },
    { target: "vdb", sizeBytes: MIB },
  ];
  const { context } = new FakeWorld(path, { disks }).process();
  const common = { domain: "vm", leaseMs: 60_000, disks: [] };
  const create = (more: Partial<Parameters<typeof createBlockSnapshotHandler>[1]>) =>
    createBlockSnapshotHandler(context, { ...common, ...more }, {});
  for (const name of ["cp0", "cp1"]) {
    await create({ name, checkpoint: {} });
    await deleteBlockSnapshotHandler(context, { domain: "vm", name, failed: false }, {});
  }
  const start = (more: Partial<Parameters<typeof startBlockExportsHandler>[1]>) =>
    startBlockExportsHandler(context, { domain: "vm", snapshot: "", disks: [], clients: [], ...more }, {});
  return { context, create, start };
}

describe("createBlockSnapshotHandler with XML", () => {
  it("freezes all disks if the document names none", async () => {
    const { create } = await world();
    expect(await create({ xml: SNAPSHOT })).toMatchObject({
      name: "n",
      disks: [{ target: "vda" }, { target: "vdb" }],
    });
  });

  it("takes checkpoint and lease beside the document, but neither a name nor disks", async () => {
    const { create } = await world();
    for (const conflict of [{ name: "m" }, { disks: ["vda"] }]) {
      await expect(create({ xml: SNAPSHOT, ...conflict })).rejects.toMatchObject({
        code: "INVALID_ARGUMENT",
      });
    }
    const created = await create({ xml: SNAPSHOT, checkpoint: {}, leaseMs: 5000 });
    expect(created).toMatchObject({ checkpoint: "n", leaseMs: 5000 });
  });

  it("gives each disk the file that the document says, and the others one in the scratch directory", async () => {
    const { context, create } = await world();
    const disks = "<disk name='vdb'><fleece file='/x/b'/></disk><disk name='vda'/>";
    const created = await create({ xml: SNAPSHOT.replace("</name>", `</name>${disks}`) });
    const scratch = created.disks[0]?.scratchFile ?? "";
    expect(scratch).toContain(context.scratchDir);
    expect(created.disks[1]?.scratchFile).toBe("/x/b");
    expect(await getBlockSnapshotXmlHandler(context, { domain: "vm", name: "n", rfcForm: false })).toEqual({
      xml: `<domainblocksnapshot>
  <name>n</name>
  <disk name='vda' type='file'>
    <scratch file='${scratch}'/>
  </disk>
  <disk name='vdb' type='file'>
    <scratch file='/x/b'/>
  </disk>
</domainblocksnapshot>
`,
    });
  });
});

describe("startBlockExportsHandler with XML", () => {
  it("offers each disk with the changes since its own checkpoint, and again the same", async () => {
    const { context, create, start } = await world();
    await create({ xml: SNAPSHOT });
    const xml = request(
      "<disk name='vda' snapshot='n' checkpoint='cp0'/><disk name='vdb' snapshot='n' checkpoint='cp1'/>",
    );
    const started = await start({ xml });
    expect(started.exports.map(({ target, since }) => [target, since])).toEqual([
      ["vda", "cp0"],
      ["vdb", "cp1"],
    ]);
    expect(await start({ xml })).toEqual(started);
    expect(await listBlockExportsHandler(context, { domain: "vm" })).toEqual(started);
    const { xml: shown } = await getDomainXmlHandler(context, { domain: "vm" }, {});
    expect(parseDomainXml(shown).blockExports).toMatchObject([
      {
        disks: [
          { name: "vda", checkpoint: "cp0", exportName: "vda-n" },
          { name: "vdb", checkpoint: "cp1", exportName: "vdb-n" },
        ],
      },
    ]);
  });

  it.each([
    [
      "UNSUPPORTED",
      { xml: request("<address type='ip' host='::1' port='1'/><disk name='vda' snapshot='n'/>") },
    ],
    ["UNSUPPORTED", { xml: request("<address type='unix' path='/s'/><disk name='vda' snapshot='n'/>") }],
    ["INVALID_ARGUMENT", { xml: request("<disk name='vda' snapshot='n'/>"), snapshot: "n" }],
    ["INVALID_ARGUMENT", { xml: request("<disk name='vda' snapshot='n'/>"), since: "cp0" }],
    ["INVALID_ARGUMENT", { xml: request("<disk name='vda' snapshot='n'/>"), disks: ["vda"] }],
    ["INVALID_ARGUMENT", {}],
    ["SNAPSHOT_NOT_FOUND", { xml: request("<disk name='vda' snapshot='m'/>") }],
    ["DISK_NOT_FOUND", { xml: request("<disk name='vdz' snapshot='n'/>") }],
  ])("fails with %s for %j", async (code, wanted) => {
    const { create, start } = await world();
    await create({ xml: SNAPSHOT });
    await expect(start(wanted)).rejects.toMatchObject({ code });
  });
});
