import type { DiskState, DomainState } from "../model/snapshot-plan.js";
import type { ServiceContext } from "../services/context.js";
import { inspectDomain, listDomains } from "../services/domains.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type { DiskFormatName, Disk, Domain, ListDomainsResponse } from "./messages.js";

export async function listDomainsHandler(context: ServiceContext): Promise<ListDomainsResponse> {
  const domains = await listDomains(context);
  return {
    domains: domains.map((summary): Domain =>
      summary.state === undefined
        ? { name: summary.domain, state: "UNKNOWN", disks: [], trouble: summary.trouble }
        : domainMessage(summary.state),
    ),
  };
}

export async function getDomainHandler(
  context: ServiceContext,
  { domain }: CallRequest<"Domains.Get">,
  { signal }: CallOptions,
): Promise<Domain> {
  return domainMessage(await inspectDomain(context, domain, signal));
}

const STATES = { running: "RUNNING", paused: "PAUSED", inactive: "INACTIVE" } as const;
const FORMATS = { qcow2: "QCOW2", raw: "RAW" } as const;

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
    checkpoints: disk.checkpoints.map(({ name }) => name),
    foreignBitmaps: disk.foreignBitmaps,
    obstacle: disk.obstacle && { code: disk.obstacle.code, reason: disk.obstacle.reason },
    staged: disk.staged ?? false,
  };
}
