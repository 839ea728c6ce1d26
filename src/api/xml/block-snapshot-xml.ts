import { checkName } from "../../model/names.js";
import { checkFilePath } from "../../model/paths.js";
import type { ElementFields } from "./xml-fields.js";
import { oneOf, readRoot } from "./xml-fields.js";
import { xmlError } from "./xml-error.js";
import { readXml } from "./xml-reader.js";
import { printXml } from "./xml-writer.js";

/** `<domainblocksnapshot>`: a block snapshot that is asked for, or one that there is. */
export interface BlockSnapshotDocument {
  /** Left out: one is made up. */
  readonly name?: string;
  /** None: all disks of the domain. */
  readonly disks: readonly BlockSnapshotDiskDocument[];
}

export interface BlockSnapshotDiskDocument {
  readonly name: string;
  /** Where the old content goes; left out: to the scratch directory. */
  readonly file?: string;
}

/** What the element with the file is called: `fleece` in the RFC, `scratch` by those who came after it. */
export type ScratchElement = "scratch" | "fleece";

/** Fails with XML_INVALID, INVALID_NAME or INVALID_ARGUMENT; the message begins with the line. */
export function parseBlockSnapshotXml(text: string): BlockSnapshotDocument {
  return readRoot(readXml(text), "domainblocksnapshot", (fields) => {
    const name = fields.optionalChild("name", (inner) =>
      inner.text((value) => checkName("block snapshot", value)),
    );
    const disks = fields.children("disk", readDisk, {
      disk: (disk) => disk.name,
      file: (disk) => disk.file,
    });
    return { ...(name === undefined ? {} : { name }), disks };
  });
}

function readDisk(fields: ElementFields): BlockSnapshotDiskDocument {
  const name = fields.attribute("name", (value) => checkName("disk", value));
  fields.optionalAttribute("type", oneOf("file"));
  const scratch = fields.optionalChild("scratch", readScratch);
  const fleece = fields.optionalChild("fleece", readScratch);
  if (scratch !== undefined && fleece !== undefined) {
    throw xmlError(fields.line, "<scratch> or <fleece> in <disk>, which mean the same", "both");
  }
  const file = (scratch ?? fleece)?.file;
  return { name, ...(file === undefined ? {} : { file }) };
}

function readScratch(fields: ElementFields): { readonly file?: string | undefined } {
  return { file: fields.optionalAttribute("file", (value) => checkFilePath("a scratch file", value)) };
}

export function printBlockSnapshotXml(
  { name, disks }: BlockSnapshotDocument,
  scratchElement: ScratchElement = "scratch",
): string {
  return printXml({
    name: "domainblocksnapshot",
    children: [
      ...(name === undefined ? [] : [{ name: "name", text: name }]),
      ...disks.map((disk) => ({
        name: "disk",
        attributes: { name: disk.name, type: "file" },
        children: disk.file === undefined ? [] : [{ name: scratchElement, attributes: { file: disk.file } }],
      })),
    ],
  });
}
