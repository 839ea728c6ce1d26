import fc from "fast-check";
import type {
  BlockExportDocument,
  ExportAddressDocument,
  ExportRequestDocument,
} from "../../../../src/api/xml/block-export-xml.js";
import type { BlockSnapshotDocument } from "../../../../src/api/xml/block-snapshot-xml.js";
import type { DomainDocument } from "../../../../src/api/xml/domain-xml.js";

/** Any name that model/names.ts allows. */
const name = (max: number): fc.Arbitrary<string> =>
  fc.stringMatching(new RegExp(`^[A-Za-z0-9_][A-Za-z0-9_.:+@=-]{0,${max - 1}}$`));

const diskName = name(64);
const longName = name(128);

/** Whatever XML can hold, with what it takes for its own more often than chance would. */
const character = fc.oneof(
  fc.constantFrom(
    "<",
    ">",
    "&",
    "'",
    '"',
    " ",
    "]]>",
    "&amp;",
    "&#10;",
    "<!--",
    ",",
    "\t",
    "\n",
    "\r",
    "\r\n",
  ),
  fc
    .string({ unit: "binary", minLength: 1, maxLength: 1 })
    .filter((text) => !/[^\t\n\r\u{20}-\u{D7FF}\u{E000}-\u{FFFD}\u{10000}-\u{10FFFF}]/u.test(text)),
);
const text = fc.string({ unit: character, minLength: 1, maxLength: 40 });

const path = fc
  .array(
    text.map((part) => part.replaceAll(/[/\p{Cc}]/gu, "")).filter((part) => !["", ".", ".."].includes(part)),
    { minLength: 1, maxLength: 4 },
  )
  .map((parts) => `/${parts.join("/")}`);

const address: fc.Arbitrary<ExportAddressDocument> = fc.oneof(
  fc.record({
    type: fc.constant("ip" as const),
    host: fc.oneof(fc.ipV4(), fc.ipV6(), fc.domain()),
    port: fc.integer({ min: 1, max: 65_535 }),
  }),
  fc.record({ type: fc.constant("unix" as const), path }),
);

export const snapshot: fc.Arbitrary<BlockSnapshotDocument> = fc.record(
  {
    name: longName,
    disks: fc
      .uniqueArray(fc.record({ name: diskName, file: path }, { requiredKeys: ["name"] }), {
        selector: (disk) => disk.name,
        maxLength: 8,
      })
      .filter((disks) => {
        const files = disks.flatMap(({ file }) => file ?? []);
        return new Set(files).size === files.length;
      }),
  },
  { requiredKeys: ["disks"] },
);

const exportDisk = { name: diskName, snapshot: longName, checkpoint: longName };

export const exportRequest: fc.Arbitrary<ExportRequestDocument> = fc.record(
  {
    address,
    disks: fc.uniqueArray(fc.record(exportDisk, { requiredKeys: ["name", "snapshot"] }), {
      selector: (disk) => disk.name,
      minLength: 1,
      maxLength: 8,
    }),
  },
  { requiredKeys: ["disks"] },
);

export const blockExport: fc.Arbitrary<BlockExportDocument> = fc.record({
  address,
  disks: fc.uniqueArray(
    fc.record({ ...exportDisk, exportName: text }, { requiredKeys: ["name", "snapshot", "exportName"] }),
    { selector: (disk) => disk.exportName, maxLength: 8 },
  ),
});

const domainDisk = fc.record(
  {
    target: diskName,
    bus: text,
    alias: text,
    format: fc.constantFrom("qcow2" as const, "raw" as const),
    file: text,
    checkpoints: fc.uniqueArray(longName, { maxLength: 4 }),
  },
  { requiredKeys: ["target", "format", "file", "checkpoints"] },
);

export const domain: fc.Arbitrary<DomainDocument> = fc.record(
  {
    name: longName,
    uuid: fc.uuid(),
    disks: fc.uniqueArray(domainDisk, { selector: (disk) => disk.target, maxLength: 4 }),
    blockExports: fc.array(blockExport, { maxLength: 2 }),
  },
  { requiredKeys: ["name", "disks", "blockExports"] },
);
