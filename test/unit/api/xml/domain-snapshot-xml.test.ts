import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  parseDomainSnapshotXml,
  printDomainSnapshotXml,
} from "../../../../src/api/xml/domain-snapshot-xml.js";

/** As in the proposal, to the letter. */
const EXAMPLE = `<domainsnapshot>
  <description>external test</description>
  <memory snapshot='external' file='/mnt/vm/memory'/>
  <disks>
    <disk name='/mnt/vm/disk0.qcow2' snapshot='external'>
      <driver type='qcow2'/>
      <source file='/mnt/vm/disk0_new.qcow2'/>
    </disk>
  </disks>
</domainsnapshot>
`;

const path = fc.constantFrom("/mnt/a", "/mnt/b c.qcow2", "/mnt/d,e.qcow2");
const memory = fc.oneof(
  fc.constant({ memory: false }),
  fc.constant({ memory: true, memoryKind: "internal" as const }),
  fc.record({ memory: fc.constant(true), memoryKind: fc.constant("external" as const), memoryPath: path }),
);
const disk = fc.oneof(
  fc.record({
    disk: fc.constantFrom("vda", "vdb", "/vm/c"),
    kind: fc.constantFrom("no" as const, "internal" as const),
  }),
  fc.record({ disk: fc.constantFrom("vda", "vdb", "/vm/c") }),
);
const document = fc
  .tuple(
    fc.record(
      {
        name: fc.constantFrom("a", "1397207577"),
        description: fc
          .string({ minLength: 1, unit: "grapheme-ascii" })
          .filter((text) => text.trim() === text),
        parent: fc.constant("p"),
        state: fc.constantFrom("running" as const, "paused" as const, "inactive" as const),
        creationTimeSeconds: fc.nat(),
        disks: fc.uniqueArray(disk, { selector: (one) => one.disk, maxLength: 3 }),
      },
      { requiredKeys: [] },
    ),
    fc.oneof(memory, fc.constant({})),
  )
  .map(([rest, kept]) => ({ ...rest, ...kept }));

describe("<domainsnapshot>", () => {
  it("is read and written to the letter", () => {
    const parsed = parseDomainSnapshotXml(EXAMPLE);
    expect(parsed).toEqual({
      description: "external test",
      memory: true,
      memoryKind: "external",
      memoryPath: "/mnt/vm/memory",
      disks: [{ disk: "/mnt/vm/disk0.qcow2", kind: "external", overlay: "/mnt/vm/disk0_new.qcow2" }],
    });
    expect(printDomainSnapshotXml(parsed)).toBe(EXAMPLE);
  });

  it("is the same value again when it is read", () => {
    fc.assert(
      fc.property(document, (value) => {
        expect(parseDomainSnapshotXml(printDomainSnapshotXml(value))).toEqual(value);
      }),
    );
  });

  it.each([
    ["<memory snapshot='manual'/>", 'Line 2: expected "no" or "internal" or "external", got "manual"'],
    ["<memory snapshot='no' file='/a'/>", "Line 2: expected no file in <memory"],
    [
      "<disks>\n<disk name='a' snapshot='no'><source file='/a'/></disk></disks>",
      "Line 3: expected no <source>",
    ],
    ["<disks><disk name='a/b'/></disks>", "Line 2: Expected a disk name"],
    ["<disks><disk name='a'/><disk name='a'/></disks>", 'Line 2: expected each disk once, got "a" again'],
    ["<disks><disk name='a'><driver type='raw'/></disk></disks>", 'Line 2: expected "qcow2", got "raw"'],
    ["<creationTime>soon</creationTime>", "Line 2: expected a time in seconds since 1970"],
    ["<state>off</state>", "Line 2: expected"],
    ["<cookie/>", "Line 2: expected only elements of <domainsnapshot>"],
  ])("is refused with the line: %s", (inner, message) => {
    expect(() => parseDomainSnapshotXml(`<domainsnapshot>\n${inner}\n</domainsnapshot>`)).toThrow(message);
  });
});
