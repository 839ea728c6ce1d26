import { once } from "node:events";
import type { Socket } from "node:net";
import { createSecureContext, createServer, type TLSSocket, type TlsOptions } from "node:tls";
import { errnoOf, errorMessage, FleeceError } from "../../shared/errors.js";
import { Refusal } from "./refusal.js";

/** PEM: the front's certificate and key, and the authority that signs those of clients. */
export interface FrontTlsFiles {
  readonly ca: string | Buffer;
  readonly cert: string | Buffer;
  readonly key: string | Buffer;
}

/** Who a client proved to be. */
export interface ClientIdentity {
  /** The common name, if there is exactly one. */
  readonly name: string | undefined;
  /** `sha256:` and hexadecimal digits. */
  readonly fingerprint: string;
}

/** Fails with INVALID_ARGUMENT if certificate and key cannot be used. */
export function tlsOptions(files: FrontTlsFiles): TlsOptions {
  const options: TlsOptions = {
    ...files,
    minVersion: "TLSv1.2",
    requestCert: true,
    rejectUnauthorized: true,
    // 128 bits are as safe here, and the fastest.
    ciphers: "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:ECDHE+AESGCM:!aNULL",
    honorCipherOrder: true,
  };
  try {
    createSecureContext(options);
  } catch (error) {
    const message = `Expected a certificate, its key and an authority in PEM: ${errorMessage(error)}`;
    throw new FleeceError("INVALID_ARGUMENT", message, { cause: error });
  }
  return options;
}

/**
 * Secures a connection after STARTTLS; rejects with a Refusal. Each has a TLS server of its own, which is how Node tells
 * the result of one handshake from others'; it also means that sessions are never resumed, so certificates are always checked.
 */
export async function secure(
  socket: Socket,
  options: TlsOptions,
): Promise<{ socket: TLSSocket; client: ClientIdentity }> {
  const server = createServer(options);
  const failed = new Promise<never>((_resolve, reject) => {
    server.once("tlsClientError", (error, failing) => reject(tlsRefusal(error, failing)));
  });
  server.emit("connection", socket);
  const [tls] = (await Promise.race([once(server, "secureConnection"), failed])) as [TLSSocket];
  tls.disableRenegotiation();
  // The option above makes Node destroy such connections; a mistake there must not let anybody in.
  if (!tls.authorized) throw new Refusal("its certificate was not verified");
  return { socket: tls, client: identityOf(tls) };
}

function identityOf(socket: TLSSocket): ClientIdentity {
  const { subject, fingerprint256 } = socket.getPeerCertificate();
  // Node gives a list where a subject has several.
  const name: unknown = subject.CN;
  const fingerprint = `sha256:${fingerprint256.replaceAll(":", "").toLowerCase()}`;
  return { name: typeof name === "string" ? name : undefined, fingerprint };
}

/** A certificate that does not verify is told by a code such as CERT_HAS_EXPIRED, everything else by OpenSSL's words. */
function tlsRefusal(error: Error, socket: TLSSocket): Refusal {
  // Typed as an Error; it is null or a code.
  const untrusted: unknown = socket.authorizationError;
  if (typeof untrusted === "string") return new Refusal(`its certificate is not trusted: ${untrusted}`);
  const code = errnoOf(error);
  return new Refusal(
    code === "ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE"
      ? "it has no certificate"
      : `the TLS handshake failed: ${code ?? error.message}`,
  );
}
