import type { QuiesceOutcome, QuiescePlan } from "../model/quiesce.js";
import { FleeceError } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";

/** Whether and how to freeze the guest's file systems; `wanted` left out means as configured. Fails with INVALID_ARGUMENT. */
export function planQuiesce(
  { quiesce }: ServiceContext,
  domain: string,
  wanted: boolean | undefined,
): QuiescePlan | undefined {
  const settings = quiesce.get(domain);
  if (settings === undefined && wanted === true) {
    throw new FleeceError(
      "INVALID_ARGUMENT",
      `Expected a \`guestAgent\` of domain ${domain} in the configuration, so that it can be quiesced`,
      { facts: { domain } },
    );
  }
  if (settings === undefined || !(wanted ?? settings.byDefault)) return undefined;
  const { timeoutMs, onFailure } = settings;
  return { timeoutMs, onFailure };
}

/** What the moment cost the guest, and a warning if it is not what was asked for. */
export function logMoment(
  { log, meter }: ServiceContext,
  domain: string,
  { heldMs, quiesce }: { readonly heldMs: number; readonly quiesce?: QuiesceOutcome },
): void {
  const frozenMs = quiesce?.frozen === true ? quiesce.frozenMs : 0;
  meter.moment(domain, { heldMs, frozenMs });
  if (quiesce?.frozen === false) {
    log.warn({ domain, heldMs }, `Not quiesced, so only crash-consistent: ${quiesce.reason}`);
  } else {
    log.info({ domain, heldMs, frozenMs }, "The moment is frozen");
  }
}
