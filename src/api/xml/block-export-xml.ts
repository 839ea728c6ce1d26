import { checkName } from "../../model/names.js";
import { checkFilePath } from "../../model/paths.js";
import { FleeceError } from "../../shared/errors.js";
import { quoted, xmlError } from "./xml-error.js";
import type { ElementFields } from "./xml-fields.js";
import { oneOf, readRoot } from "./xml-fields.js";
import { readXml } from "./xml-reader.js";
import type { XmlNode } from "./xml-writer.js";
import { printXml } from "./xml-writer.js";

export type ExportAddressDocument =
  | { readonly type: "ip"; readonly host: string; readonly port: number }
  | { readonly type: "unix"; readonly path: string };

export interface ExportDiskDocument {
  readonly name: string;
  readonly snapshot: string;
  /** Also offer what changed since this checkpoint. */
  readonly checkpoint?: string;
}

/** `<domainblockexport>`: exports that are asked for. */
export interface ExportRequestDocument {
  /** Left out: where the domain's NBD server listens anyway. */
  readonly address?: ExportAddressDocument;
  readonly disks: readonly ExportDiskDocument[];
}

/** `<blockexport>`: exports that there are, at one address. */
export interface BlockExportDocument {
  readonly address: ExportAddressDocument;
  readonly disks: readonly (ExportDiskDocument & { readonly exportName: string })[];
}

/** Fails with XML_INVALID, INVALID_NAME or INVALID_ARGUMENT; the message begins with the line. */
export function parseExportRequestXml(text: string): ExportRequestDocument {
  return readRoot(readXml(text), "domainblockexport", (fields) => {
    fields.attribute("type", oneOf("nbd"));
    const address = fields.optionalChild("address", readAddress);
    const disks = fields.children("disk", readDisk, {
      disk: ({ name, snapshot }) => `${name} of ${snapshot}`,
    });
    if (disks.length === 0) throw xmlError(fields.line, "a <disk> in <domainblockexport>", "none");
    return { ...(address === undefined ? {} : { address }), disks };
  });
}

export function printExportRequestXml({ address, disks }: ExportRequestDocument): string {
  return printXml({
    name: "domainblockexport",
    attributes: { type: "nbd" },
    children: [
      ...(address === undefined ? [] : [addressNode(address)]),
      ...disks.map(({ name, snapshot, checkpoint }) => ({
        name: "disk",
        attributes: { name, snapshot, checkpoint },
      })),
    ],
  });
}

/** Fails with XML_INVALID, INVALID_NAME or INVALID_ARGUMENT; the message begins with the line. */
export function parseBlockExportXml(text: string): BlockExportDocument {
  return readRoot(readXml(text), "blockexport", readBlockExport);
}

export function printBlockExportXml(document: BlockExportDocument): string {
  return printXml(blockExportNode(document));
}

export function readBlockExport(fields: ElementFields): BlockExportDocument {
  fields.attribute("type", oneOf("nbd"));
  const address = fields.child("address", readAddress);
  const disks = fields.children(
    "disk",
    (disk) => ({ ...readDisk(disk), exportName: disk.attribute("exportname", notEmpty) }),
    { "export name": ({ exportName }) => exportName },
  );
  return { address, disks };
}

export function blockExportNode({ address, disks }: BlockExportDocument): XmlNode {
  return {
    name: "blockexport",
    attributes: { type: "nbd" },
    children: [
      addressNode(address),
      ...disks.map(({ name, snapshot, checkpoint, exportName }) => ({
        name: "disk",
        attributes: { name, snapshot, checkpoint, exportname: exportName },
      })),
    ],
  };
}

function readDisk(fields: ElementFields): ExportDiskDocument {
  const name = fields.attribute("name", (value) => checkName("disk", value));
  const snapshot = fields.attribute("snapshot", (value) => checkName("block snapshot", value));
  const checkpoint = fields.optionalAttribute("checkpoint", (value) => checkName("checkpoint", value));
  return { name, snapshot, ...(checkpoint === undefined ? {} : { checkpoint }) };
}

function readAddress(fields: ElementFields): ExportAddressDocument {
  const type = fields.attribute("type", oneOf("ip", "unix"));
  return type === "ip"
    ? { type, host: fields.attribute("host", toHost), port: fields.attribute("port", toPort) }
    : { type, path: fields.attribute("path", (value) => checkFilePath("a Unix socket", value)) };
}

function addressNode(address: ExportAddressDocument): XmlNode {
  const attributes =
    address.type === "ip"
      ? { type: "ip", host: address.host, port: String(address.port) }
      : { type: "unix", path: address.path };
  return { name: "address", attributes };
}

function toHost(text: string): string {
  if (/^[A-Za-z0-9.:_%-]{1,255}$/.test(text)) return text;
  throw new FleeceError("XML_INVALID", `expected a host name or an IP address, got ${quoted(text)}`);
}

function toPort(text: string): number {
  const port = Number(text);
  if (/^[1-9]\d{0,4}$/.test(text) && port <= 65_535) return port;
  throw new FleeceError("XML_INVALID", `expected a port from 1 to 65535, got ${quoted(text)}`);
}

function notEmpty(text: string): string {
  if (text !== "") return text;
  throw new FleeceError("XML_INVALID", "expected a name, got an empty one");
}
