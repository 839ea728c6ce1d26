import type { DiskState, DomainState } from "../model/snapshot-plan.js";
import type { ServiceContext } from "../services/context.js";
import { inspectDomain, listDomains } from "../services/domains.js";
import type { BlockExport } from "../services/block-exports.js";
import { listExports } from "../services/block-exports.js";
import { publicExport } from "./block-exports.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type { DiskFormatName, Disk, Domain, ListDomainsResponse, XmlDocument } from "./messages.js";
import { page } from "./page.js";
import type { DomainDocument } from "./xml/domain-xml.js";
import { printDomainXml } from "./xml/domain-xml.js";

/** Looks only at the domains of the page. */
export async function listDomainsHandler(
  context: ServiceContext,
  paging: CallRequest<"Domains.List">,
): Promise<ListDomainsResponse> {
  const places = [...context.domains.entries()];
  const { items, nextPageToken } = page(places, paging, ["domains"], ([place]) => [place]);
  const domains = await listDomains(
    context,
    items.map(([, domain]) => domain),
  );
  return {
    domains: domains.map((summary): Domain =>
      summary.state === undefined
        ? { name: summary.domain, state: "UNKNOWN", disks: [], trouble: summary.trouble }
        : domainMessage(summary.state),
    ),
    nextPageToken,
  };
}

export async function getDomainHandler(
  context: ServiceContext,
  { domain }: CallRequest<"Domains.Get">,
  { signal }: CallOptions,
): Promise<Domain> {
  return domainMessage(await inspectDomain(context, domain, signal));
}

/** Answers with `<domain>`: its disks with their checkpoints, and its exports. */
export async function getDomainXmlHandler(
  context: ServiceContext,
  { domain }: CallRequest<"Domains.GetXml">,
  { signal }: CallOptions,
): Promise<XmlDocument> {
  const state = await inspectDomain(context, domain, signal);
  const exports = await listExports(context, domain);
  return { xml: printDomainXml(domainDocument(state, exports)) };
}

export function domainDocument(
  { domain, disks }: DomainState,
  exports: readonly BlockExport[],
): DomainDocument {
  const offered = exports.map((open) => ({ ...open, ...publicExport(open) }));
  const addresses = new Map(offered.map(({ address }) => [JSON.stringify(address), address]));
  return {
    name: domain,
    disks: disks.map(({ target, format, file, activeFile, checkpoints }) => ({
      target,
      format,
      file,
      ...(activeFile === undefined ? {} : { activeFile }),
      checkpoints: namesOf(checkpoints),
    })),
    blockExports: [...addresses].map(([key, address]) => ({
      address,
      disks: offered
        .filter((open) => JSON.stringify(open.address) === key)
        .map(({ target, snapshot, since, exportName }) => ({
          ...{ name: target, snapshot, exportName },
          ...(since === undefined ? {} : { checkpoint: since }),
        })),
    })),
  };
}

const STATES = { running: "RUNNING", paused: "PAUSED", inactive: "INACTIVE" } as const;
const FORMATS = {
  qcow2: "QCOW2",
  raw: "RAW",
  vpc: "VPC",
  vhdx: "VHDX",
  vmdk: "VMDK",
  vdi: "VDI",
} as const;

export function formatName(format: DiskState["format"]): DiskFormatName {
  return FORMATS[format];
}

export function domainMessage({ domain, mode, qemuVersion, disks }: DomainState): Domain {
  return { name: domain, state: STATES[mode], qemuVersion, disks: disks.map(diskMessage) };
}

function diskMessage(disk: DiskState): Disk {
  return {
    target: disk.target,
    format: formatName(disk.format),
    file: disk.file,
    sizeBytes: disk.sizeBytes,
    checkpoints: namesOf(disk.checkpoints),
    foreignBitmaps: disk.foreignBitmaps,
    obstacle: disk.obstacle && { code: disk.obstacle.code, reason: disk.obstacle.reason },
    staged: disk.staged ?? false,
    activeFile: disk.activeFile,
    frozenFiles: disk.frozenFiles ?? [],
  };
}

function namesOf(checkpoints: DiskState["checkpoints"]): readonly string[] {
  return checkpoints.filter(({ deleted }) => deleted !== true).map(({ name }) => name);
}
