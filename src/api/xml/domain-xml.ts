import { checkName } from "../../model/names.js";
import { DISK_FORMATS, type DiskFormat } from "../../model/snapshot-plan.js";
import { FleeceError } from "../../shared/errors.js";
import type { BlockExportDocument } from "./block-export-xml.js";
import { blockExportNode, readBlockExport } from "./block-export-xml.js";
import { quoted } from "./xml-error.js";
import type { ElementFields } from "./xml-fields.js";
import { oneOf, readRoot } from "./xml-fields.js";
import { readXml } from "./xml-reader.js";
import type { XmlNode } from "./xml-writer.js";
import { printXml } from "./xml-writer.js";

/** `<domain>`, in the form of libvirt as far as backups are concerned. */
export interface DomainDocument {
  readonly name: string;
  readonly uuid?: string;
  readonly disks: readonly DomainDiskDocument[];
  /** One for each address. */
  readonly blockExports: readonly BlockExportDocument[];
}

export interface DomainDiskDocument {
  readonly target: string;
  readonly bus?: string;
  readonly alias?: string;
  readonly format: DiskFormat;
  /** As QEMU or the configuration names it. */
  readonly file: string;
  /** What it is in now, where domain snapshots have moved it. */
  readonly activeFile?: string;
  /** Names, oldest first. */
  readonly checkpoints: readonly string[];
}

/** Fails with XML_INVALID, INVALID_NAME or INVALID_ARGUMENT; the message begins with the line. */
export function parseDomainXml(text: string): DomainDocument {
  return readRoot(readXml(text), "domain", (fields) => {
    const name = fields.child("name", (inner) => inner.text((value) => checkName("domain", value)));
    const uuid = fields.optionalChild("uuid", (inner) => inner.text(toUuid));
    const disks = fields.child("devices", (devices) =>
      devices.children("disk", readDisk, { disk: ({ target }) => target }),
    );
    const blockExports = fields.children("blockexport", readBlockExport);
    return { name, ...(uuid === undefined ? {} : { uuid }), disks, blockExports };
  });
}

function readDisk(fields: ElementFields): DomainDiskDocument {
  fields.attribute("type", oneOf("file"));
  fields.attribute("device", oneOf("disk"));
  const format = fields.child("driver", (driver) => {
    driver.attribute("name", oneOf("qemu"));
    return driver.attribute("type", oneOf(...DISK_FORMATS));
  });
  const file = fields.child("source", (source) => source.attribute("file", asItIs));
  const activeFile = fields.optionalChild("active", (active) => active.attribute("file", asItIs));
  const target = fields.child("target", (inner) => {
    const bus = inner.optionalAttribute("bus", asItIs);
    const dev = inner.attribute("dev", (value) => checkName("disk", value));
    return { target: dev, ...(bus === undefined ? {} : { bus }) };
  });
  const alias = fields.optionalChild("alias", (inner) => inner.attribute("name", asItIs));
  const checkpoints = fields.children(
    "checkpoint",
    (inner) => inner.attribute("name", (value) => checkName("checkpoint", value)),
    { checkpoint: (name) => name },
  );
  return {
    ...target,
    ...(alias === undefined ? {} : { alias }),
    ...{ format, file, checkpoints },
    ...(activeFile === undefined ? {} : { activeFile }),
  };
}

export function printDomainXml({ name, uuid, disks, blockExports }: DomainDocument): string {
  return printXml({
    name: "domain",
    children: [
      { name: "name", text: name },
      ...(uuid === undefined ? [] : [{ name: "uuid", text: uuid }]),
      { name: "devices", children: disks.map(diskNode) },
      ...blockExports.map(blockExportNode),
    ],
  });
}

function diskNode({
  target,
  bus,
  alias,
  format,
  file,
  activeFile,
  checkpoints,
}: DomainDiskDocument): XmlNode {
  return {
    name: "disk",
    attributes: { type: "file", device: "disk" },
    children: [
      { name: "driver", attributes: { name: "qemu", type: format } },
      { name: "source", attributes: { file } },
      ...(activeFile === undefined ? [] : [{ name: "active", attributes: { file: activeFile } }]),
      { name: "target", attributes: { dev: target, bus } },
      ...(alias === undefined ? [] : [{ name: "alias", attributes: { name: alias } }]),
      ...checkpoints.map((checkpoint) => ({ name: "checkpoint", attributes: { name: checkpoint } })),
    ],
  };
}

function toUuid(text: string): string {
  if (/^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/i.test(text)) return text;
  throw new FleeceError("XML_INVALID", `expected a UUID, got ${quoted(text)}`);
}

function asItIs(text: string): string {
  return text;
}
