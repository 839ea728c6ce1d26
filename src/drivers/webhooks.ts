import type { Webhooks } from "../ports/webhooks.js";
import { errnoOf, FleeceError } from "../shared/errors.js";

export const webhooks: Webhooks = {
  async post(url, body, signal) {
    let response: Response;
    try {
      const headers = { "content-type": "application/json" };
      // A redirect would take what runs are about to somebody whom nobody has configured.
      response = await fetch(url, { method: "POST", redirect: "manual", headers, body, signal });
    } catch (error) {
      const cause: unknown = error instanceof Error ? error.cause : undefined;
      const why = signal.aborted ? "it did not answer in time" : (errnoOf(cause) ?? "no connection");
      throw new FleeceError("INTERNAL", why, { cause: error });
    }
    await response.body?.cancel();
    if (!response.ok) throw new FleeceError("INTERNAL", `it answered with status ${response.status}`);
  },
};
