import { NbdConnection } from "./connection.js";
import { NbdError } from "./errors.js";
import { enterExport } from "./handshake.js";
import { negotiate } from "./negotiation.js";
import type { BesideUri, NbdConnectOptions } from "./options.js";
import { Session } from "./session.js";
import { checkServer, checkString, checkTimeout, resolveTarget } from "./target.js";

const DEFAULT_REQUEST_TIMEOUT_MS = 60_000;

/**
 * Connects to one export, by a URI with options beside it, or by options alone. Rejects with an `NbdError`: `CONNECT_FAILED`, `TIMEOUT`, `EXPORT_NOT_FOUND`,
 * `CONTEXT_NOT_OFFERED`, `TLS_REQUIRED`, …; nothing stays open then.
 */
export async function connectNbd(
  target: string | NbdConnectOptions,
  besideUri: BesideUri<NbdConnectOptions> = {},
): Promise<NbdConnection> {
  const options = resolveTarget(target, besideUri);
  const metaContexts = [...new Set(options.metaContexts ?? [])];
  for (const name of [options.exportName, ...metaContexts]) checkString(name);
  const wildcard = metaContexts.find((name) => !name.includes(":") || name.endsWith(":"));
  if (wildcard !== undefined) {
    throw new NbdError(
      "INVALID_ARGUMENT",
      `Expected the full name of a metadata context, got ${JSON.stringify(wildcard)}`,
    );
  }
  const requestTimeoutMs = checkTimeout(options.requestTimeoutMs ?? DEFAULT_REQUEST_TIMEOUT_MS);
  const handshake = {
    exportName: options.exportName,
    metaContexts,
    optionalContexts: options.optionalContexts ?? false,
    extendedHeaders: options.extendedHeaders ?? true,
  };
  return await negotiate({
    ...(await checkServer(options)),
    handshake: (send, greeted) => enterExport(send, handshake, greeted),
    done: (negotiated, transport) => {
      const session = new Session(transport, negotiated, requestTimeoutMs);
      return new NbdConnection(session, options.exportName, negotiated);
    },
  });
}
