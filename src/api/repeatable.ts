import type { ServiceContext } from "../services/context.js";
import { RequestLog } from "../services/request-log.js";
import { FleeceError } from "../shared/errors.js";
import type { CallName, CallOptions } from "./call-types.js";
import { CALLS, runCall } from "./calls.js";
import type { Progress, ServedBackup } from "./messages.js";

export type Requests = RequestLog<Progress, ServedBackup>;

/** The requests of this agent that may be sent again. */
export function openRequests(context: ServiceContext): Promise<Requests> {
  return RequestLog.open(context);
}

const REQUEST_ID = /^[A-Za-z0-9._:-]{1,64}$/;

/** Runs a call; one that changes something and has a `request_id` as often as it is sent, with the effect of one. */
export async function runRepeatable(
  requests: Requests,
  context: ServiceContext,
  caller: string,
  name: CallName,
  request: object,
  options: CallOptions & { readonly signal: AbortSignal },
): Promise<object | undefined> {
  // It is what the method takes, which is how it was decoded; a type for all methods at once would be empty.
  const run = (how: CallOptions): Promise<object | undefined> =>
    runCall(context, name, request as never, how);
  const { requestId: id, ...fields } = request as { readonly requestId?: string };
  if (id === undefined || !CALLS[name].mutates) return run(options);
  if (!REQUEST_ID.test(id)) {
    const expected = "Expected a requestId of 1 to 64 letters, digits and . _ : -";
    throw new FleeceError("INVALID_ARGUMENT", `${expected}, got ${JSON.stringify(id.slice(0, 100))}`, {
      facts: { field: "requestId" },
    });
  }
  const { signal, onProgress, onServed } = options;
  const content = canonical(fields);
  return requests.run(
    { caller, method: name, id, content },
    {
      signal,
      ...(onProgress === undefined ? {} : { onProgress }),
      ...(onServed === undefined ? {} : { onServed }),
    },
    ({ key, promise, ...work }) => run({ ...work, requestKey: key, beforeEffect: promise }),
  );
}

/** The same text for the same fields. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_, inner: unknown) =>
    typeof inner === "object" && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}
