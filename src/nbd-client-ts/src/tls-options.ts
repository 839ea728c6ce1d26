import { readFile } from "node:fs/promises";
import { userInfo } from "node:os";
import { isIP } from "node:net";
import { join } from "node:path";
import {
  checkServerIdentity,
  createSecureContext,
  type ConnectionOptions,
  type PeerCertificate,
} from "node:tls";
import { NbdError } from "./errors.js";
import type { NbdTlsOptions } from "./options.js";

/** What a TLS handshake needs, with all files read and all keys known to be well-formed. */
export interface TlsSettings {
  readonly required: boolean;
  readonly connection: ConnectionOptions;
}

/** Names that libnbd, QEMU and nbdkit give to the files in a directory of certificates. */
const CERTIFICATE_FILES = { ca: "ca-cert.pem", cert: "client-cert.pem", key: "client-key.pem" } as const;

/**
 * In TLS 1.3 a key shared beforehand works with SHA-256 only. In TLS 1.2 the list keeps the server from falling back
 * on certificates, or on nothing at all.
 */
const PSK_CIPHERS = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:aPSK:!kRSAPSK";

/** `host` is the server's name where the options have none. */
export async function loadTls(options: NbdTlsOptions, host: string): Promise<TlsSettings> {
  const psk = await loadPsk(options);
  const hostname = options.hostname ?? host;
  if (hostname === "") throw new NbdError("INVALID_ARGUMENT", "Expected a TLS hostname, got an empty one");
  const required = (options.mode ?? "require") === "require";
  const common = {
    minVersion: "TLSv1.2",
    // An address is no server name (RFC 6066).
    ...(isIP(hostname) === 0 ? { servername: hostname } : {}),
  } as const;
  if (psk !== undefined) return { required, connection: { ...common, ...pskOptions(psk) } };
  const credentials = await loadCertificates(options);
  return {
    required,
    connection: {
      ...common,
      secureContext: wellFormed(() => createSecureContext({ ...credentials, minVersion: "TLSv1.2" })),
      rejectUnauthorized: options.verifyPeer ?? true,
      checkServerIdentity: (_name, certificate) => checkServerIdentity(hostname, certificate),
    },
  };
}

interface Psk {
  readonly identity: string;
  readonly key: Uint8Array;
}

function pskOptions(psk: Psk): ConnectionOptions {
  return {
    ciphers: PSK_CIPHERS,
    ca: [],
    pskCallback: () => ({ identity: psk.identity, psk: psk.key }),
    // A certificate proves nothing here, whoever signed it: the server must have the key.
    rejectUnauthorized: true,
    checkServerIdentity: (_name: string, certificate: PeerCertificate | Record<string, never>) =>
      Object.keys(certificate).length === 0
        ? undefined
        : new Error("The server showed a certificate instead of using the shared key"),
  };
}

async function loadPsk(options: NbdTlsOptions): Promise<Psk | undefined> {
  const { psk, pskFile } = options;
  if (psk === undefined && pskFile === undefined) return undefined;
  const { ca, cert, key, certificates } = options;
  const others = [ca, cert, key, certificates].some((each) => each !== undefined);
  if (others || (psk !== undefined && pskFile !== undefined)) {
    throw new NbdError("INVALID_ARGUMENT", "Expected one of psk, pskFile and certificates for TLS");
  }
  if (psk !== undefined) return checkPsk(psk);
  return await readPskFile(pskFile ?? "", options.username ?? userInfo().username);
}

/** Lines of `username:key in hexadecimal digits`, as `psktool` writes them. */
async function readPskFile(path: string, username: string): Promise<Psk> {
  const lines = (await readCredential(path)).toString("utf8").split(/\r?\n/);
  const line = lines.find((each) => each.startsWith(`${username}:`));
  if (line === undefined) {
    throw new NbdError("TLS_CREDENTIALS", `Expected a key of user ${JSON.stringify(username)} in ${path}`);
  }
  const digits = line.slice(username.length + 1).trim();
  if (!/^(?:[0-9a-fA-F]{2})+$/.test(digits)) {
    const user = JSON.stringify(username);
    throw new NbdError(
      "TLS_CREDENTIALS",
      `Expected hexadecimal digits as the key of user ${user} in ${path}`,
    );
  }
  return checkPsk({ identity: username, key: Buffer.from(digits, "hex") });
}

function checkPsk(psk: Psk): Psk {
  if (psk.key.length > 0 && psk.identity !== "") return psk;
  throw new NbdError("TLS_CREDENTIALS", "Expected a shared key with an identity and at least one byte");
}

type Credentials = Pick<NbdTlsOptions, "ca" | "cert" | "key">;

async function loadCertificates(options: NbdTlsOptions): Promise<Credentials> {
  const { certificates, ca, cert, key } = options;
  const all: Credentials = {
    ...(certificates === undefined ? {} : await readDirectory(certificates, options.verifyPeer ?? true)),
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
  };
  if ((all.cert === undefined) === (all.key === undefined)) return all;
  throw new NbdError("TLS_CREDENTIALS", "Expected a client certificate and its key, got only one of them");
}

async function readDirectory(directory: string, needsCa: boolean): Promise<Credentials> {
  const found: Record<string, Buffer> = {};
  for (const [name, file] of Object.entries(CERTIFICATE_FILES)) {
    const optional = name !== "ca" || !needsCa;
    const bytes = await readCredential(join(directory, file), optional);
    if (bytes.length > 0) found[name] = bytes;
  }
  return found;
}

/** An optional file that is absent counts as empty. */
async function readCredential(path: string, optional = false): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    if (optional && (cause as NodeJS.ErrnoException).code === "ENOENT") return Buffer.alloc(0);
    throw new NbdError("TLS_CREDENTIALS", `Expected to read ${path} for TLS`, { cause });
  }
}

function wellFormed<T>(make: () => T): T {
  try {
    return make();
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new NbdError("TLS_CREDENTIALS", `Expected well-formed certificates and keys: ${why}`, { cause });
  }
}
