import type { DiskConfig, DomainConfig } from "../model/config.js";
import { connectQmp, isQmpError, type QmpSession } from "../qmp/index.js";
import { FleeceError } from "../shared/errors.js";
import { mapQmpError } from "./qmp-errors.js";

/** How a domain can be reached: a monitor on which somebody listens means running, anything unclear means unreachable. */
export type Reached =
  | { readonly running: true; readonly qmp: QmpSession; readonly qmpSocketPath: string }
  /** `cause`: why nobody is taken to listen. */
  | { readonly running: false; readonly cause?: Error };

/** Fails with DOMAIN_UNREACHABLE. */
export async function reachDomain({ name, qmp }: DomainConfig, signal?: AbortSignal): Promise<Reached> {
  if (qmp === undefined) return { running: false };
  try {
    return { running: true, qmp: await connectQmp({ socketPath: qmp, signal }), qmpSocketPath: qmp };
  } catch (error) {
    if (isQmpError(error, "QMP_SOCKET_ABSENT", "QMP_REFUSED")) return { running: false, cause: error };
    throw mapQmpError(error, `Domain ${name}`);
  }
}

/** The images of a domain that does not run. Fails with DOMAIN_UNREACHABLE if nobody knows them. */
export function disksOf(
  { name, disks }: DomainConfig,
  { cause }: { readonly cause?: Error },
): readonly DiskConfig[] {
  if (disks !== undefined) return disks;
  throw new FleeceError(
    "DOMAIN_UNREACHABLE",
    `Domain ${name} does not run, and the configuration lists no disks to reach it by: ${cause?.message ?? "no QMP socket"}`,
    { cause, facts: { domain: name } },
  );
}

/** Fails with DOMAIN_NOT_FOUND. */
export function configOf(domains: readonly DomainConfig[], name: string): DomainConfig {
  const config = domains.find((domain) => domain.name === name);
  if (config !== undefined) return config;
  throw new FleeceError("DOMAIN_NOT_FOUND", `The configuration has no domain ${name}`);
}
