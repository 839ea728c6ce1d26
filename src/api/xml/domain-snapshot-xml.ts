import type { SnapshotState } from "../../model/domain-snapshot.js";
import { checkName } from "../../model/names.js";
import { checkFilePath } from "../../model/paths.js";
import type { SnapshotWishes, WishedDisk } from "../../model/snapshot-file.js";
import { FleeceError } from "../../shared/errors.js";
import { quoted, xmlError } from "./xml-error.js";
import type { ElementFields } from "./xml-fields.js";
import { oneOf, readRoot } from "./xml-fields.js";
import { readXml } from "./xml-reader.js";
import { printXml, type XmlNode } from "./xml-writer.js";

/** `<domainsnapshot>` in libvirt's form: a domain snapshot that is asked for, or one that there is. */
export interface DomainSnapshotDocument extends SnapshotWishes {
  readonly memoryKind?: "external" | "internal";
  /** Of one that there is; when one is asked for, these are read and ignored. */
  readonly parent?: string;
  readonly state?: SnapshotState;
  /** Since 1970. */
  readonly creationTimeSeconds?: number;
}

/** libvirt calls a running domain's state `disk-snapshot` where memory is left out. */
const STATES = {
  running: "running",
  "disk-snapshot": "running",
  paused: "paused",
  shutoff: "inactive",
} as const;
const STATE_NAMES = { running: "running", paused: "paused", inactive: "shutoff" } as const;

/** Fails with XML_INVALID, INVALID_NAME or INVALID_ARGUMENT; the message begins with the line. */
export function parseDomainSnapshotXml(text: string): DomainSnapshotDocument {
  return readRoot(readXml(text), "domainsnapshot", (fields) => {
    const name = fields.optionalChild("name", (inner) => inner.text(snapshotName));
    const description = fields.optionalChild("description", (inner) => inner.text((value) => value));
    const parent = fields.optionalChild("parent", (inner) =>
      inner.child("name", (of) => of.text(snapshotName)),
    );
    const state = fields.optionalChild("state", (inner) =>
      inner.text(oneOf("running", "paused", "shutoff", "disk-snapshot")),
    );
    const creationTimeSeconds = fields.optionalChild("creationTime", (inner) => inner.text(toSeconds));
    const memory = fields.optionalChild("memory", readMemory);
    const disks = fields.optionalChild("disks", (inner) =>
      inner.children("disk", readDisk, { disk: ({ disk }) => disk, "source file": ({ overlay }) => overlay }),
    );
    return {
      ...(name === undefined ? {} : { name }),
      ...(description === undefined ? {} : { description }),
      ...(parent === undefined ? {} : { parent }),
      ...(state === undefined ? {} : { state: STATES[state] }),
      ...(creationTimeSeconds === undefined ? {} : { creationTimeSeconds }),
      ...memory,
      ...(disks === undefined ? {} : { disks }),
    };
  });
}

function readMemory(
  fields: ElementFields,
): Pick<DomainSnapshotDocument, "memory" | "memoryKind" | "memoryPath"> {
  const kind = fields.attribute("snapshot", oneOf("no", "internal", "external"));
  const file = fields.optionalAttribute("file", (value) => checkFilePath("the memory image", value));
  if (file !== undefined && kind !== "external") {
    throw xmlError(fields.line, `no file in <memory snapshot=${quoted(kind)}>`, quoted(file));
  }
  if (kind === "no") return { memory: false };
  return { memory: true, memoryKind: kind, ...(file === undefined ? {} : { memoryPath: file }) };
}

function readDisk(fields: ElementFields): WishedDisk {
  const disk = fields.attribute("name", targetOrFile);
  const kind = fields.optionalAttribute("snapshot", oneOf("no", "internal", "external"));
  fields.optionalAttribute("type", oneOf("file"));
  fields.optionalChild("driver", (driver) => driver.attribute("type", oneOf("qcow2")));
  const overlay = fields.optionalChild("source", (source) =>
    source.attribute("file", (value) => checkFilePath("the new file of a disk", value)),
  );
  if (overlay !== undefined && kind !== undefined && kind !== "external") {
    throw xmlError(fields.line, `no <source> in <disk snapshot=${quoted(kind)}>`, quoted(overlay));
  }
  return {
    disk,
    ...(kind === undefined ? {} : { kind }),
    ...(overlay === undefined ? {} : { overlay }),
  };
}

export function printDomainSnapshotXml(document: DomainSnapshotDocument): string {
  const { name, description, parent, state, creationTimeSeconds, memory, disks } = document;
  const text = (element: string, value: string | undefined): XmlNode[] =>
    value === undefined ? [] : [{ name: element, text: value }];
  const stateName = state === "running" && memory === false ? "disk-snapshot" : state && STATE_NAMES[state];
  return printXml({
    name: "domainsnapshot",
    children: [
      ...text("name", name),
      ...text("description", description),
      ...text("state", stateName),
      ...text("creationTime", creationTimeSeconds?.toString()),
      ...(parent === undefined ? [] : [{ name: "parent", children: [{ name: "name", text: parent }] }]),
      ...(memory === undefined ? [] : [memoryNode(document, memory)]),
      ...(disks === undefined ? [] : [{ name: "disks", children: disks.map(diskNode) }]),
    ],
  });
}

function memoryNode(
  { memoryKind = "external", memoryPath }: DomainSnapshotDocument,
  memory: boolean,
): XmlNode {
  const attributes = memory ? { snapshot: memoryKind, file: memoryPath } : { snapshot: "no" };
  return { name: "memory", attributes };
}

function diskNode({ disk, kind, overlay }: WishedDisk): XmlNode {
  const children =
    overlay === undefined
      ? []
      : [
          { name: "driver", attributes: { type: "qcow2" } },
          { name: "source", attributes: { file: overlay } },
        ];
  return { name: "disk", attributes: { name: disk, snapshot: kind }, children };
}

function snapshotName(value: string): string {
  return checkName("domain snapshot", value);
}

/** libvirt takes both for a disk's name. */
function targetOrFile(value: string): string {
  return value.startsWith("/") ? checkFilePath("a disk", value) : checkName("disk", value);
}

function toSeconds(value: string): number {
  const seconds = Number(value);
  if (/^\d+$/.test(value) && Number.isSafeInteger(seconds)) return seconds;
  throw new FleeceError("XML_INVALID", `expected a time in seconds since 1970, got ${quoted(value)}`);
}
