import type { DomainState } from "../model/snapshot-plan.js";
import { forEachLimited } from "../shared/async.js";
import { errorMessage, isFleeceError } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";
import { requireDomain } from "./context.js";
import { DomainSession } from "./domain-session.js";

export type DomainSummary =
  | { readonly domain: string; readonly state: DomainState }
  | { readonly domain: string; readonly state?: undefined; readonly trouble: string };

/** Each look at an inactive domain is a process; one at a running domain that hangs should not hold up many others. */
const LOOKS_AT_ONCE = 32;

/** One that cannot be looked at says why instead of failing the list. */
export async function listDomains(
  context: ServiceContext,
  domains: readonly string[],
): Promise<readonly DomainSummary[]> {
  const found = new Map<string, DomainSummary>();
  await forEachLimited(domains, LOOKS_AT_ONCE, async (domain) => {
    try {
      found.set(domain, { domain, state: await inspectDomain(context, domain) });
    } catch (error) {
      found.set(domain, { domain, trouble: errorMessage(error) });
    }
  });
  return domains.flatMap((domain) => found.get(domain) ?? []);
}

/** Reads only. Fails with DOMAIN_BUSY instead of DOMAIN_UNREACHABLE while another command has the monitor. */
export async function inspectDomain(
  context: ServiceContext,
  name: string,
  signal?: AbortSignal,
): Promise<DomainState> {
  const domain = requireDomain(context, name);
  try {
    await using session = new DomainSession(context.drivers, domain);
    const driver = await session.driver(signal);
    return await driver.inspect(signal);
  } catch (error) {
    if (isFleeceError(error, "DOMAIN_UNREACHABLE")) await refuseIfBusy(context, domain);
    throw error;
  }
}

/** QEMU's monitor serves one client at a time, and whoever holds the lock has it: say who instead of "no greeting". */
async function refuseIfBusy({ store }: ServiceContext, domain: string): Promise<void> {
  const lock = await store.lockDomain(domain, "a look at the domain");
  await lock.release();
}
