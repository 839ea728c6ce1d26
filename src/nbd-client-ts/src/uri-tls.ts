import { NbdError } from "./errors.js";
import type { NbdUriTls } from "./uri.js";

/** Parameters of the URI specification, with libnbd's `tls-certificates` and `tls-psk-file`. */
const TLS_NAMES = [
  "tls-type",
  "tls-hostname",
  "tls-verify-peer",
  "tls-certificates",
  "tls-psk-file",
] as const;
type TlsName = (typeof TLS_NAMES)[number];

export const QUERY_NAMES: ReadonlySet<string> = new Set(["socket", ...TLS_NAMES]);

const TRUTH: ReadonlyMap<string, boolean> = new Map([
  ["0", false],
  ["false", false],
  ["1", true],
  ["true", true],
]);

/** Parameters about TLS are refused without it: who wrote them expects protection. */
export function readTlsParameters(
  parameters: ReadonlyMap<string, string>,
  username: string | undefined,
  encrypted: boolean,
): NbdUriTls | undefined {
  if (!encrypted) {
    const useless =
      TLS_NAMES.find((name) => parameters.has(name)) ?? (username === undefined ? undefined : "a user");
    if (useless === undefined) return undefined;
    throw invalid(`${useless} only with TLS: its scheme is nbds or nbds+unix`);
  }
  const get = (name: TlsName) => parameters.get(name);
  for (const name of TLS_NAMES) if (get(name) === "") throw invalid(`a value for ${name}`);
  const certificates = get("tls-certificates");
  const hostname = get("tls-hostname");
  const verifyPeer = readTruth(get("tls-verify-peer"));
  const pskFile = get("tls-psk-file");
  if (pskFile !== undefined && (certificates !== undefined || verifyPeer === false)) {
    throw invalid("either tls-psk-file or parameters about certificates");
  }
  if (pskFile === undefined && username !== undefined) throw invalid("tls-psk-file beside a user");
  checkType(get("tls-type"), pskFile !== undefined);
  return {
    ...(certificates === undefined ? {} : { certificates }),
    ...(hostname === undefined ? {} : { hostname }),
    ...(verifyPeer === undefined ? {} : { verifyPeer }),
    ...(pskFile === undefined ? {} : { pskFile }),
    ...(username === undefined ? {} : { username }),
  };
}

export function tlsParameters(tls: NbdUriTls): [name: string, value: string][] {
  const values: readonly [name: TlsName, value: string | undefined][] = [
    ["tls-certificates", tls.certificates],
    ["tls-hostname", tls.hostname],
    ["tls-verify-peer", tls.verifyPeer === undefined ? undefined : tls.verifyPeer ? "1" : "0"],
    ["tls-psk-file", tls.pskFile],
  ];
  return values.flatMap(([name, value]): [string, string][] => (value === undefined ? [] : [[name, value]]));
}

function readTruth(value: string | undefined): boolean | undefined {
  if (value === undefined) return undefined;
  const truth = TRUTH.get(value);
  if (truth === undefined) throw invalid(`0 or 1 for tls-verify-peer, got ${JSON.stringify(value)}`);
  return truth;
}

/** Anonymous TLS keeps nobody out who can come between, and Node's TLS does not offer it. */
function checkType(type: string | undefined, hasPsk: boolean): void {
  if (type === undefined || type === (hasPsk ? "psk" : "x509")) return;
  const expected =
    type === "psk" ? "tls-psk-file beside tls-type=psk" : "tls-type=x509, or psk with tls-psk-file";
  throw invalid(`${expected}, got ${JSON.stringify(type)}`);
}

function invalid(expected: string): NbdError {
  return new NbdError("INVALID_URI", `Expected in an NBD URI ${expected}`);
}
