import { resolve } from "node:path";
import { parseHostPort } from "../agent.js";
import { FleeceError } from "../shared/errors.js";
import type { GlobalOptions } from "./session.js";

/** An agent on another host, and the files that TLS needs. */
export interface RemotePlace {
  readonly address: { readonly host: string; readonly port: number };
  readonly certificate: string;
  readonly key: string;
  readonly ca: string;
}

/**
 * From --agent and its companions, else from $FLEECE_AGENT and its. Undefined if there is neither. Fails with
 * INVALID_ARGUMENT.
 */
export function remoteAgent(
  options: GlobalOptions,
  { env, cwd }: { readonly env: Readonly<Record<string, string | undefined>>; readonly cwd: string },
): RemotePlace | undefined {
  if (options.embedded === true) {
    if (options.agent === undefined) return undefined;
    throw new FleeceError("INVALID_ARGUMENT", "Expected either --agent or --embedded, got both");
  }
  // A configuration that is named means the agent of this host.
  const text = options.agent ?? (options.config === undefined ? env["FLEECE_AGENT"] : undefined);
  if (text === undefined || text === "") return undefined;
  const address = parseHostPort(text);
  if (address === undefined) {
    throw new FleeceError(
      "INVALID_ARGUMENT",
      `Expected HOST:PORT for --agent, with an IPv6 address in brackets, got ${text}`,
    );
  }
  const file = (key: "certificate" | "key" | "ca"): string => {
    const named = options[key] ?? env[`FLEECE_${key.toUpperCase()}`];
    if (named !== undefined && named !== "") return resolve(cwd, named);
    throw new FleeceError(
      "INVALID_ARGUMENT",
      `Expected --${key} (or $FLEECE_${key.toUpperCase()}) beside --agent: there is no way to it but mutual TLS`,
    );
  };
  return { address, certificate: file("certificate"), key: file("key"), ca: file("ca") };
}
