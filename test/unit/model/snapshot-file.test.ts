import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  parseSnapshotFile,
  printSnapshotFile,
  type SnapshotWishes,
} from "../../../src/model/snapshot-file.js";

const V4 = `name = "1397207577"
description = "a snapshot after OS installation"
creationtime = "1397207577"            # never set by the user; ignored
save = "/var/lib/xen/snapshots/UUID/1397207577.save"
disk = [ 'hda=/var/lib/xen/snapshots/UUID/disk_hda.qcow2,type=qcow2',
         'hdc=/var/lib/xen/snapshots/UUID/disk_hdc.qcow2,type=qcow2' ]
`;

const V9 = `# before the upgrade
name=""
description='it works'
memory=1
disks=['/tmp/hda_snapshot.qcow2,qcow2,hda', '/tmp/h,d,b.qcow2,qcow2,hdb', ]`;

describe("parseSnapshotFile", () => {
  it("reads the form with `disk` and `save`", () => {
    expect(parseSnapshotFile(V4, "s.cfg")).toEqual({
      name: "1397207577",
      description: "a snapshot after OS installation",
      memory: true,
      memoryPath: "/var/lib/xen/snapshots/UUID/1397207577.save",
      disks: [
        { disk: "hda", kind: "external", overlay: "/var/lib/xen/snapshots/UUID/disk_hda.qcow2" },
        { disk: "hdc", kind: "external", overlay: "/var/lib/xen/snapshots/UUID/disk_hdc.qcow2" },
      ],
    });
  });

  it("reads the form with `disks`; an empty name is a default one, and a path may have commas", () => {
    expect(parseSnapshotFile(V9, "s.cfg")).toEqual({
      description: "it works",
      memory: true,
      disks: [
        { disk: "hda", kind: "external", overlay: "/tmp/hda_snapshot.qcow2" },
        { disk: "hdb", kind: "external", overlay: "/tmp/h,d,b.qcow2" },
      ],
    });
  });

  it.each<[string, SnapshotWishes]>([
    ["", {}],
    [
      "disks = [',,hda', ',,hdb']",
      {
        disks: [
          { disk: "hda", kind: "internal" },
          { disk: "hdb", kind: "internal" },
        ],
      },
    ],
    ["disks = [',qcow2,/vm/a.raw']", { disks: [{ disk: "/vm/a.raw", kind: "external" }] }],
    [
      "disk = ['hda=/a,type=qcow2']",
      { memory: false, disks: [{ disk: "hda", kind: "external", overlay: "/a" }] },
    ],
    ['memory = "yes"', { memory: true }],
    ["memory = 0", { memory: false }],
    ['memory = "/m"', { memory: true, memoryPath: "/m" }],
    ['memory_path = "/m"', { memory: true, memoryPath: "/m" }],
    ['memory_path = ""', {}],
    ['name = "a"; description = "b"', { name: "a", description: "b" }],
    ["disks = [\n  # none\n]", { disks: [] }],
  ])("understands %j", (text, wishes) => {
    expect(parseSnapshotFile(text, "s.cfg")).toEqual(wishes);
  });

  it("lets words of the command line replace what the file says, with or without quotes", () => {
    const words = ["name=other", 'description="two words"', "memory=0", "disks=[',,vda']"];
    expect(parseSnapshotFile("name = 'a'", "s.cfg", words)).toEqual({
      name: "other",
      description: "two words",
      memory: false,
      disks: [{ disk: "vda", kind: "internal" }],
    });
  });

  it.each([
    ["nmae = 'a'", "s.cfg:1: Expected one of name, description"],
    ["name = 'a'\nname = 'b'", "s.cfg:2: Expected name once, got it again, after s.cfg:1"],
    ["\n\nname = a", "s.cfg:3: Expected a value, got a"],
    ["name = 'a' 'b'", "s.cfg:1: Expected the end of the line, got 'b'"],
    ["name = 'a", "s.cfg:1: Expected KEY = VALUE with strings in quotes"],
    ["name", "s.cfg:1: Expected =, got the end of the line"],
    ["name = 'a/b'", "s.cfg:1: name: Expected a domain snapshot name"],
    ["disks = ['a' 'b']", "s.cfg:1: Expected a comma or ], got 'b'"],
    ["disks = ['a'", "s.cfg:1: Expected a comma or ], got the end of the line"],
    ["disks = [1]", "s.cfg:1: Expected a string in quotes or ], got 1"],
    ["disks = 'a'", "s.cfg:1: disks: Expected a list in brackets"],
    ["disks = ['vda']", "s.cfg:1: disks: Expected 'path,format,target'"],
    ["disks = ['/a,raw,vda']", "s.cfg:1: disks: Expected the format qcow2"],
    ["disks = ['a,qcow2,vda']", "s.cfg:1: disks: Expected an absolute path"],
    ["disk = ['vda']", "s.cfg:1: disk: Expected 'target=path,type=qcow2'"],
    ["disk = []\ndisks = []", "s.cfg:1: Expected either disk or disks, got both"],
    ["memory = 1\nsave = '/m'", "s.cfg:2: Expected either memory or save"],
    ["memory = 0\nmemory_path = '/m'", "s.cfg:1: Expected memory, since memory_path says where"],
    ["memory = 2", "s.cfg:1: memory: Expected a string in quotes, got"],
    ["memory = '/a'\nmemory_path = '/b'", "s.cfg:1: Expected the memory_path /b, got /a"],
  ])("refuses %j with the place", (text, message) => {
    expect(() => parseSnapshotFile(text, "s.cfg")).toThrow(
      expect.objectContaining({
        code: "CONFIG_INVALID",
        message: expect.stringContaining(message) as string,
      }),
    );
  });

  it("refuses a word that is no setting", () => {
    expect(() => parseSnapshotFile("", "s.cfg", ["live"])).toThrow(/argument live: Expected KEY=VALUE/);
  });

  it("reads back what is printed", () => {
    const text = fc
      .string({ unit: "grapheme-ascii" })
      .filter((value) => !(value.includes("'") && value.includes('"')));
    const path = fc.constantFrom("/a", "/var/lib/vm/a b.qcow2", "/x,y=z.qcow2");
    const disk = fc.record(
      { disk: fc.constantFrom("vda", "hdb", "/vm/a.raw"), kind: fc.constant("external" as const) },
      {},
    );
    const wishes = fc.record(
      {
        name: fc.constantFrom("a", "1397207577"),
        description: text,
        memory: fc.constant(true),
        memoryPath: path,
        disks: fc.array(
          fc.oneof(
            disk,
            fc.record({ disk: fc.constant("vda"), kind: fc.constant("external" as const), overlay: path }),
            fc.record({ disk: fc.constant("vda"), kind: fc.constant("internal" as const) }),
          ),
        ),
      },
      { requiredKeys: ["memory"] },
    );
    fc.assert(
      fc.property(wishes, (wished) => {
        expect(parseSnapshotFile(printSnapshotFile(wished), "s.cfg")).toEqual(wished);
      }),
    );
  });

  it("never fails but with a coded error, whatever the text", () => {
    fc.assert(
      fc.property(
        fc.string({
          unit: fc.constantFrom("name", "disks", "=", "[", "]", "'", '"', ",", "#", ";", " ", "\n", "0", "/"),
        }),
        (text) => {
          try {
            parseSnapshotFile(text, "s.cfg");
          } catch (error) {
            expect(error).toMatchObject({ code: "CONFIG_INVALID" });
          }
        },
      ),
    );
  });
});
