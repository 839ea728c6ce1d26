import { isIPv6 } from "node:net";
import { NbdError } from "./errors.js";
import type { NbdTlsOptions } from "./options.js";
import { QUERY_NAMES, readTlsParameters, tlsParameters } from "./uri-tls.js";

/** What an NBD URI says, in the form of the options of `connectNbd`. `tls` is there if the URI asks for TLS. */
export interface NbdUri {
  readonly exportName: string;
  /** Exactly one of `socketPath` and `host` is given. */
  readonly socketPath?: string;
  /** Without the brackets that an IPv6 address has in the URI. */
  readonly host?: string;
  readonly port?: number;
  readonly tls?: NbdUriTls;
}

export type NbdUriTls = Pick<
  NbdTlsOptions,
  "certificates" | "hostname" | "verifyPeer" | "pskFile" | "username"
>;

const DEFAULT_PORT = 10809;
/** Generic syntax of RFC 3986, appendix B; the authority is told from an absent one. */
const SYNTAX = /^([A-Za-z][A-Za-z0-9+.-]*):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?$/;
const CHARACTERS = /^[\w\-.~:/?#[\]@!$&'()*+,;=%]*$/;

/**
 * Reads an NBD URI with the scheme `nbd`, `nbds`, `nbd+unix` or `nbds+unix`. Throws `INVALID_URI` for anything that
 * it does not understand, also for parameters that would have no effect. Reads no files.
 */
export function parseNbdUri(uri: string): NbdUri {
  const [, scheme = "", authority, path = "", query, fragment] = SYNTAX.exec(uri) ?? [];
  const kind = /^(nbds?)(\+unix)?$/.exec(scheme.toLowerCase());
  if (kind === null) throw invalid("the scheme nbd, nbds, nbd+unix or nbds+unix", uri);
  if (!CHARACTERS.test(uri)) throw invalid("other characters to be percent-encoded", uri);
  if (fragment !== undefined) throw invalid("no fragment (a # in a name is %23)", uri);
  if (authority === undefined || (path !== "" && !path.startsWith("/")))
    throw invalid("// after the scheme", uri);
  const exportName = decode(path.slice(1));
  if (exportName.includes("\0")) throw invalid("an export name without NUL", uri);

  const { username, hostAndPort } = splitAuthority(authority);
  const parameters = readQuery(query);
  const place = kind[2] === undefined ? readTcp(hostAndPort, parameters) : readUnix(hostAndPort, parameters);
  const tls = readTlsParameters(parameters, username, kind[1] === "nbds");
  return { exportName, ...place, ...(tls === undefined ? {} : { tls }) };
}

/** The URI that `parseNbdUri` reads as the same. Throws `INVALID_URI` where there is none. */
export function formatNbdUri(parts: NbdUri): string {
  const { exportName, socketPath, host, port, tls } = parts;
  const parameters = tls === undefined ? [] : tlsParameters(tls);
  if (socketPath !== undefined) parameters.unshift(["socket", socketPath]);
  const user = tls?.username === undefined ? "" : `${encodeAll(tls.username)}@`;
  const where = host === undefined ? "" : formatHost(host) + (port === undefined ? "" : `:${port}`);
  const scheme = `nbd${tls === undefined ? "" : "s"}${socketPath === undefined ? "" : "+unix"}`;
  const query = parameters.map(([name, value]) => `${name}=${encode(value)}`).join("&");
  const uri = `${scheme}://${user}${where}/${encode(exportName)}${query === "" ? "" : `?${query}`}`;
  parseNbdUri(uri); // a host or port that makes no URI, for example
  return uri;
}

function splitAuthority(authority: string): { username: string | undefined; hostAndPort: string } {
  const at = authority.lastIndexOf("@");
  if (at < 0) return { username: undefined, hostAndPort: authority };
  const user = authority.slice(0, at);
  // Not repeated in the message: it is a secret that does not belong there.
  if (user === "" || user.includes(":")) throw invalid("a user name and no password before @");
  return { username: decode(user), hostAndPort: authority.slice(at + 1) };
}

function readTcp(
  hostAndPort: string,
  parameters: ReadonlyMap<string, string>,
): Pick<NbdUri, "host" | "port"> {
  if (parameters.has("socket"))
    throw invalid("no socket parameter over TCP: its scheme is nbd+unix or nbds+unix");
  const [, literal, name = "", digits = ""] =
    /^(?:\[([^\]]*)\]|([^:[\]]*))(?::(\d*))?$/.exec(hostAndPort) ?? [];
  const host = decode(literal ?? name);
  if (literal !== undefined && !isIPv6(host)) throw invalid("an IPv6 address within brackets", literal);
  if (host === "" || host.includes("\0")) throw invalid("a host, and perhaps a port after it", hostAndPort);
  const port = digits === "" ? DEFAULT_PORT : Number(digits);
  if (port < 1 || port > 65535) throw invalid("a port between 1 and 65535", digits);
  return { host, port };
}

function readUnix(host: string, parameters: ReadonlyMap<string, string>): Pick<NbdUri, "socketPath"> {
  const socketPath = parameters.get("socket") ?? "";
  if (socketPath === "") throw invalid("the parameter socket with the path of a Unix socket");
  if (host !== "") throw invalid("no host beside a Unix socket", host);
  // A leading NUL is Linux's abstract namespace.
  if (socketPath.includes("\0", 1)) throw invalid("no NUL within the path of a socket");
  return { socketPath };
}

function readQuery(query: string | undefined): ReadonlyMap<string, string> {
  const parameters = new Map<string, string>();
  if (query === undefined || query === "") return parameters;
  for (const part of query.split("&")) {
    const equals = part.indexOf("=");
    if (equals < 1) throw invalid("parameters of the form name=value", part);
    const name = decode(part.slice(0, equals));
    if (!QUERY_NAMES.has(name)) throw invalid(`one of the parameters ${[...QUERY_NAMES].join(", ")}`, name);
    if (parameters.has(name)) throw invalid("each parameter once", name);
    parameters.set(name, decode(part.slice(equals + 1)));
  }
  return parameters;
}

function formatHost(host: string): string {
  return isIPv6(host) ? `[${host.replace("%", "%25")}]` : encodeAll(host);
}

/** A plus sign stands for itself: this is a URI, not a form. */
function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid("percent-encoded UTF-8", text);
  }
}

/** For what comes after the authority: slashes stay readable there, and mean nothing special. */
function encode(text: string): string {
  return encodeAll(text).replaceAll("%2F", "/");
}

function encodeAll(text: string): string {
  try {
    return encodeURIComponent(text);
  } catch {
    throw invalid("well-formed Unicode", text);
  }
}

function invalid(expected: string, got?: string): NbdError {
  const what = got === undefined ? "" : `, got ${JSON.stringify(got)}`;
  return new NbdError("INVALID_URI", `Expected in an NBD URI ${expected}${what}`);
}
