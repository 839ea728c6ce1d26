import type { TLSSocket } from "node:tls";
import type { ServerUnaryCall, ServerWritableStream } from "@grpc/grpc-js";
import type { CertificateFacts, Client, ClientEntry } from "../model/access.js";
import { findClient } from "../model/access.js";
import { FleeceError } from "../shared/errors.js";

/** Who is at the other end of a connection, as far as the transport proves it. */
export interface Caller {
  /** Undefined for a certificate without an entry. */
  readonly client: Client | undefined;
  /** Undefined for a Unix socket. */
  readonly certificate: CertificateFacts | undefined;
  /** Address and port, or `unix`. */
  readonly peer: string;
}

/** What a transport tells of a call. */
export type Origin = Pick<
  ServerUnaryCall<unknown, unknown> | ServerWritableStream<unknown, unknown>,
  "getAuthContext" | "getPeer"
>;

/** A transport's own rule of who calls. */
export type Identify = (origin: Origin) => Caller;

export function localCaller(client: Client): Identify {
  return () => ({ client, certificate: undefined, peer: "unix" });
}

/** Of a connection whose certificate has been verified. Fails with CLIENT_UNKNOWN if that is no longer good. */
export function certifiedCaller(entries: readonly ClientEntry[], nowMs: () => number): Identify {
  return (origin) => {
    const peer = origin.getPeer();
    const { sslPeerCertificate } = origin.getAuthContext();
    if (sslPeerCertificate === undefined) throw unknownClient("no verified certificate", peer);
    const certificate = certificateFacts(sslPeerCertificate);
    // The handshake has looked at this, too; connections may last.
    if (!(nowMs() <= Date.parse(sslPeerCertificate.valid_to))) {
      throw unknownClient(`a certificate that ended on ${sslPeerCertificate.valid_to}`, peer, certificate);
    }
    return { client: findClient(entries, certificate), certificate, peer };
  };
}

export function certificateFacts({
  subject,
  fingerprint256,
}: Pick<ReturnType<TLSSocket["getPeerCertificate"]>, "subject" | "fingerprint256">): CertificateFacts {
  // Node gives a list where a subject has several common names.
  const name: unknown = subject.CN;
  return {
    subject: typeof name === "string" ? name : undefined,
    fingerprint: `sha256:${fingerprint256.replaceAll(":", "").toLowerCase()}`,
  };
}

/** The client of a call. Fails with CLIENT_UNKNOWN. */
export function requireClient({ client, certificate, peer }: Caller): Client {
  if (client !== undefined) return client;
  throw unknownClient("a certificate without an entry in the agent's configuration", peer, certificate);
}

function unknownClient(what: string, peer: string, certificate?: CertificateFacts): FleeceError {
  const { subject, fingerprint } = certificate ?? {};
  return new FleeceError("CLIENT_UNKNOWN", `The agent does not know this client: it has ${what}`, {
    facts: {
      peer,
      ...(subject === undefined ? {} : { subject }),
      ...(fingerprint === undefined ? {} : { fingerprint }),
    },
  });
}
