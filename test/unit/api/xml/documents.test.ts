import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  parseBlockExportXml,
  parseExportRequestXml,
  printBlockExportXml,
  printExportRequestXml,
} from "../../../../src/api/xml/block-export-xml.js";
import { parseBlockSnapshotXml, printBlockSnapshotXml } from "../../../../src/api/xml/block-snapshot-xml.js";
import { parseDomainXml, printDomainXml } from "../../../../src/api/xml/domain-xml.js";
import { blockExport, domain, exportRequest, snapshot } from "./arbitraries.js";

/** As in the RFC, to the letter but for what it leaves out with an ellipsis. */
const RFC = {
  snapshot: `<domainblocksnapshot>
  <name>d068765e-8b50-4d74-9b72-1e55c663cbf8</name>
  <disk name='sda' type='file'>
    <fleece file='/tmp/snapshot-a.hdd'/>
  </disk>
  <disk name='sdb' type='file'>
    <fleece file='/tmp/snapshot-b.hdd'/>
  </disk>
</domainblocksnapshot>
`,
  exportRequest: `<domainblockexport type='nbd'>
  <address type='ip' host='127.0.0.1' port='8000'/>
  <disk name='sda' snapshot='0044757e-1a2d-4c2c-b92f-bb403309bb17' checkpoint='d068765e-8b50-4d74-9b72-1e55c663cbf8'/>
  <disk name='sdb' snapshot='0044757e-1a2d-4c2c-b92f-bb403309bb17' checkpoint='d068765e-8b50-4d74-9b72-1e55c663cbf8'/>
</domainblockexport>
`,
  blockExport: `<blockexport type='nbd'>
  <address type='ip' host='127.0.0.1' port='8000'/>
  <disk name='sda' snapshot='0044757e-1a2d-4c2c-b92f-bb403309bb17' checkpoint='d068765e-8b50-4d74-9b72-1e55c663cbf8' exportname='sda-0044757e-1a2d-4c2c-b92f-bb403309bb17'/>
</blockexport>
`,
  domain: `<domain>
  <name>web01</name>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/vm/a.qcow2'/>
      <target dev='sda' bus='scsi'/>
      <alias name='scsi0-0-0-0'/>
      <checkpoint name='93a5c045-6457-2c09-e56c-927cdf34e178'/>
      <checkpoint name='5768a388-c1c4-414c-ac4e-eab216ba7c0c'/>
    </disk>
  </devices>
</domain>
`,
};
const SNAPSHOT = "0044757e-1a2d-4c2c-b92f-bb403309bb17";
const CHECKPOINT = "d068765e-8b50-4d74-9b72-1e55c663cbf8";

describe("the documents of the RFC", () => {
  it("are read: a block snapshot", () => {
    expect(parseBlockSnapshotXml(RFC.snapshot)).toEqual({
      name: CHECKPOINT,
      disks: [
        { name: "sda", file: "/tmp/snapshot-a.hdd" },
        { name: "sdb", file: "/tmp/snapshot-b.hdd" },
      ],
    });
  });

  it("are read: exports that are asked for, and those that there are", () => {
    const address = { type: "ip", host: "127.0.0.1", port: 8000 };
    const sda = { name: "sda", snapshot: SNAPSHOT, checkpoint: CHECKPOINT };
    expect(parseExportRequestXml(RFC.exportRequest)).toEqual({
      address,
      disks: [sda, { ...sda, name: "sdb" }],
    });
    const exported = { ...sda, exportName: `sda-${SNAPSHOT}` };
    expect(parseBlockExportXml(RFC.blockExport)).toEqual({ address, disks: [exported] });
  });

  it("are read: the checkpoints of a domain's disk", () => {
    expect(parseDomainXml(RFC.domain).disks).toEqual([
      {
        ...{ target: "sda", bus: "scsi", alias: "scsi0-0-0-0", format: "qcow2", file: "/vm/a.qcow2" },
        checkpoints: ["93a5c045-6457-2c09-e56c-927cdf34e178", "5768a388-c1c4-414c-ac4e-eab216ba7c0c"],
      },
    ]);
  });

  it("are written to the letter", () => {
    expect(printBlockSnapshotXml(parseBlockSnapshotXml(RFC.snapshot), "fleece")).toBe(RFC.snapshot);
    expect(printExportRequestXml(parseExportRequestXml(RFC.exportRequest))).toBe(RFC.exportRequest);
    expect(printBlockExportXml(parseBlockExportXml(RFC.blockExport))).toBe(RFC.blockExport);
    expect(printDomainXml(parseDomainXml(RFC.domain))).toBe(RFC.domain);
  });

  it("are written with <scratch> unless they are asked for with <fleece>, and both mean the same", () => {
    const scratch = printBlockSnapshotXml(parseBlockSnapshotXml(RFC.snapshot));
    expect(scratch).toBe(RFC.snapshot.replaceAll("fleece", "scratch"));
    expect(parseBlockSnapshotXml(scratch)).toEqual(parseBlockSnapshotXml(RFC.snapshot));
  });
});

describe("a document of ours", () => {
  it("is the same value again when it is read, and the same text when that is written", () => {
    const roundTrip = <T>(
      arbitrary: fc.Arbitrary<T>,
      print: (value: T) => string,
      parse: (text: string) => T,
    ) =>
      fc.assert(
        fc.property(arbitrary, (value) => {
          const text = print(value);
          expect(parse(text)).toEqual(value);
          expect(print(parse(text))).toBe(text);
        }),
        { numRuns: 100 },
      );
    roundTrip(snapshot, printBlockSnapshotXml, parseBlockSnapshotXml);
    roundTrip(snapshot, (value) => printBlockSnapshotXml(value, "fleece"), parseBlockSnapshotXml);
    roundTrip(exportRequest, printExportRequestXml, parseExportRequestXml);
    roundTrip(blockExport, printBlockExportXml, parseBlockExportXml);
    roundTrip(domain, printDomainXml, parseDomainXml);
  });

  it("is never written with what XML cannot hold", () => {
    for (const file of ["/a\u0001", "/a\ud800", "/a\ufffe"]) {
      const document = { name: "d", disks: [{ target: "a", format: "raw" as const, file, checkpoints: [] }] };
      expect(() => printDomainXml({ ...document, blockExports: [] })).toThrow(
        expect.objectContaining({ code: "XML_INVALID" }),
      );
    }
  });

  it("may leave out names, files, types and disks, and may have comments, CDATA and another order", () => {
    expect(parseBlockSnapshotXml("<domainblocksnapshot/>")).toEqual({ disks: [] });
    expect(
      parseBlockSnapshotXml(`<?xml version="1.0" encoding="utf-8"?>
        <!-- & <disk> --><domainblocksnapshot>
          <disk name="sda"/><disk name="sdb"><scratch/></disk>
          <!-- last --><name><![CDATA[night]]></name>
        </domainblocksnapshot>`),
    ).toEqual({ name: "night", disks: [{ name: "sda" }, { name: "sdb" }] });
  });
});

const disk = (inner: string) => `<domainblocksnapshot>\n${inner}\n</domainblocksnapshot>`;
const request = (inner: string) =>
  `<domainblockexport type='nbd'>\n${inner}\n<disk name='a' snapshot='s'/></domainblockexport>`;

describe("parseBlockSnapshotXml", () => {
  it.each<[string, string, string, string]>([
    [
      "another document",
      "<domain/>",
      "XML_INVALID",
      "Line 1: expected the element <domainblocksnapshot>, got <domain>",
    ],
    [
      "an unknown element",
      disk("<dsk name='a'/>"),
      "XML_INVALID",
      "Line 2: expected only elements of <domainblocksnapshot>: name, disk, got <dsk>",
    ],
    [
      "an unknown element where none is expected",
      disk("<name>a<b/></name>"),
      "XML_INVALID",
      "Line 2: expected no element in <name>, got <b>",
    ],
    [
      "an unknown attribute",
      disk("<disk\nnane='a' name='b'/>"),
      "XML_INVALID",
      'Line 3: expected only attributes of <disk>: name, type, got "nane"',
    ],
    [
      "an unknown attribute of the root",
      "<domainblocksnapshot id='1'/>",
      "XML_INVALID",
      'Line 1: expected no attribute in <domainblocksnapshot>, got "id"',
    ],
    [
      "a disk without a name",
      disk("<disk/>"),
      "XML_INVALID",
      "Line 2: expected the attribute name of <disk>, got none",
    ],
    [
      "another type of disk",
      disk("<disk name='a' type='block'/>"),
      "XML_INVALID",
      'Line 2: expected "file", got "block"',
    ],
    [
      "text where none is expected",
      disk("<disk name='a'>\nx</disk>"),
      "XML_INVALID",
      'Line 3: expected no text in <disk>, got "x"',
    ],
    [
      "two names",
      disk("<name>a</name>\n<name>b</name>"),
      "XML_INVALID",
      "Line 3: expected one <name> in <domainblocksnapshot>, got a second one",
    ],
    [
      "the same disk twice",
      disk("<disk name='a'/>\n<disk name='a'/>"),
      "XML_INVALID",
      'Line 3: expected each disk once, got "a" again, after line 2',
    ],
    [
      "the same file twice",
      disk("<disk name='a'><scratch file='/f'/></disk>\n<disk name='b'><fleece file='/f'/></disk>"),
      "XML_INVALID",
      'Line 3: expected each file once, got "/f" again, after line 2',
    ],
    [
      "scratch and fleece",
      disk("<disk name='a'><scratch/><fleece/></disk>"),
      "XML_INVALID",
      "Line 2: expected <scratch> or <fleece> in <disk>, which mean the same, got both",
    ],
    [
      "a name that is none",
      disk("<name>a/b</name>"),
      "INVALID_NAME",
      "Line 2: Expected a block snapshot name",
    ],
    ["an empty name", disk("<name/>"), "INVALID_NAME", "Line 2: Expected a block snapshot name"],
    ["a disk name that is none", disk("<disk name='a,b'/>"), "INVALID_NAME", "Line 2: Expected a disk name"],
    [
      "a relative file",
      disk("<disk name='a'>\n<scratch file='nbd:x'/></disk>"),
      "INVALID_ARGUMENT",
      "Line 3: Expected an absolute path of a scratch file",
    ],
    [
      "a way back in a file",
      disk("<disk name='a'><scratch file='/a/../b'/></disk>"),
      "INVALID_ARGUMENT",
      "Line 2: Expected an absolute path of a scratch file",
    ],
  ])("refuses %s", (_, text, code, message) => {
    expect(() => parseBlockSnapshotXml(text)).toThrow(
      expect.objectContaining({ code, message: expect.stringContaining(message) as unknown }),
    );
  });
});

describe("parseExportRequestXml", () => {
  it("takes an address of either type, or none", () => {
    expect(parseExportRequestXml(request("")).address).toBeUndefined();
    const address = (text: string) => parseExportRequestXml(request(text)).address;
    expect(address("<address type='unix' path='/run/a.sock'/>")).toEqual({
      type: "unix",
      path: "/run/a.sock",
    });
    expect(address("<address type='ip' host='::1' port='65535'/>")).toEqual({
      type: "ip",
      host: "::1",
      port: 65_535,
    });
  });

  it("may name one disk of two snapshots", () => {
    expect(parseExportRequestXml(request("<disk name='a' snapshot='t'/>")).disks).toHaveLength(2);
  });

  it.each([
    ["another type", "<domainblockexport type='nfs'/>", 'Line 1: expected "nbd", got "nfs"'],
    [
      "no disk",
      "<domainblockexport type='nbd'/>",
      "Line 1: expected a <disk> in <domainblockexport>, got none",
    ],
    [
      "a disk without a snapshot",
      request("<disk name='a'/>"),
      "Line 2: expected the attribute snapshot of <disk>, got none",
    ],
    [
      "a twin",
      request("<disk name='a' snapshot='s'/>"),
      'Line 3: expected each disk once, got "a of s" again, after line 2',
    ],
    [
      "port 0",
      request("<address type='ip' host='h' port='0'/>"),
      'Line 2: expected a port from 1 to 65535, got "0"',
    ],
    ["port 65536", request("<address type='ip' host='h' port='65536'/>"), "Line 2: expected a port"],
    ["a port in words", request("<address type='ip' host='h' port='0x50'/>"), "Line 2: expected a port"],
    [
      "an address without a port",
      request("<address type='ip' host='h'/>"),
      "Line 2: expected the attribute port of <address>, got none",
    ],
    [
      "a mixed address",
      request("<address type='unix' path='/a' port='1'/>"),
      'Line 2: expected only attributes of <address>: type, path, got "port"',
    ],
    [
      "a host with a blank",
      request("<address type='ip' host='a b' port='1'/>"),
      "Line 2: expected a host name",
    ],
  ])("refuses %s", (_, text, message) => {
    expect(() => parseExportRequestXml(text)).toThrow(
      expect.objectContaining({ code: "XML_INVALID", message: expect.stringContaining(message) as unknown }),
    );
  });
});

describe("parseDomainXml", () => {
  it("refuses a disk that is listed twice, and a checkpoint that is", () => {
    expect(() =>
      parseDomainXml(
        RFC.domain.replace("5768a388-c1c4-414c-ac4e-eab216ba7c0c", "93a5c045-6457-2c09-e56c-927cdf34e178"),
      ),
    ).toThrow(/^Line 10: expected each checkpoint once/);
    const [block] = /<disk type[\s\S]*<\/disk>/.exec(RFC.domain) ?? [""];
    expect(() => parseDomainXml(RFC.domain.replace(block, `${block}${block}`))).toThrow(
      /expected each disk once/,
    );
  });

  it("refuses a UUID that is none", () => {
    expect(() => parseDomainXml(RFC.domain.replace("<devices>", "<uuid>1-2</uuid><devices>"))).toThrow(
      /^Line 3: expected a UUID, got "1-2"$/,
    );
  });
});
