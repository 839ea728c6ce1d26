import type { DomainState } from "../model/snapshot-plan.js";
import type { BlockDriver } from "../ports/block-driver.js";
import { errorMessage } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";
import { requireDomain } from "./context.js";
import { DomainSession } from "./domain-session.js";

export type DomainSummary =
  | { readonly domain: string; readonly state: DomainState }
  | { readonly domain: string; readonly state?: undefined; readonly trouble: string };

/** Every domain of the configuration; one that cannot be looked at says why instead of failing the list. */
export function listDomains(context: ServiceContext): Promise<readonly DomainSummary[]> {
  return Promise.all(
    context.domains.map(async (domain): Promise<DomainSummary> => {
      try {
        return { domain, state: await inspectDomain(context, domain) };
      } catch (error) {
        return { domain, trouble: errorMessage(error) };
      }
    }),
  );
}

/** Reads only. */
export function inspectDomain(
  context: ServiceContext,
  name: string,
  signal?: AbortSignal,
): Promise<DomainState> {
  return readingDomain(context, name, (driver) => driver.inspect(signal));
}

async function readingDomain<T>(
  context: ServiceContext,
  name: string,
  action: (driver: BlockDriver) => Promise<T>,
): Promise<T> {
  await using session = new DomainSession(context.drivers, requireDomain(context, name));
  return await action(await session.driver());
}
