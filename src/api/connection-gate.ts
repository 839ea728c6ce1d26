import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { createServer as createTlsServer, type TLSSocket, type TlsOptions } from "node:tls";
import type { CertificateFacts } from "../model/access.js";
import { formatHostPort, type HostPort } from "../model/host-port.js";
import type { AuditEntry } from "../ports/audit-log.js";
import { errnoOf, errorMessage, fileError, FleeceError } from "../shared/errors.js";
import { certificateFacts } from "./caller.js";

export interface ConnectionLimits {
  readonly connections: number;
  /** Of each certificate. */
  readonly connectionsPerClient: number;
}

/** In PEM: the agent's certificate and key, and the authority that signs those of clients. */
export interface AgentTls {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly ca: Buffer;
}

export interface GateParts {
  readonly limits: ConnectionLimits;
  /** Gets each connection that is let in. */
  readonly admit: (socket: Socket) => void;
  readonly refused: (facts: AuditEntry) => void;
  /** Left out: whoever can connect is let in, which is for Unix sockets. */
  readonly tls?: AgentTls;
}

const HANDSHAKE_MS = 10_000;

/**
 * Handshakes under way at a time. One more ends the oldest: whoever only connects and stays silent cannot keep others out
 * for longer than they need for theirs.
 */
const HANDSHAKES = 32;

/** Accepts connections: bounds how many there are, and over TLS lets in only those with a certificate that verifies. */
export class ConnectionGate {
  readonly #server: Server;
  readonly #limits: ConnectionLimits;
  readonly #admitted: (socket: Socket) => void;
  readonly #refused: (facts: AuditEntry) => void;
  readonly #inHandshake = new Set<Socket>();
  readonly #open = new Set<Socket>();
  readonly #perCertificate = new Map<string, number>();

  constructor({ limits, admit, refused, tls }: GateParts) {
    this.#limits = limits;
    this.#admitted = admit;
    this.#refused = refused;
    this.#server = createServer({ noDelay: true }, (socket) => {
      socket.on("error", () => undefined);
      if (tls === undefined) this.#admit(socket, "unix", undefined);
      else this.#secure(socket, tls);
    });
  }

  /**
   * Resolves to what it listens on. A Unix socket is made before this returns, so that the caller may set the umask for it.
   * Fails with AGENT_RUNNING, PERMISSION_DENIED, PATH_NOT_FOUND or INVALID_ARGUMENT.
   */
  listen(address: HostPort | { readonly path: string }): Promise<AddressInfo | string | null> {
    const where = "path" in address ? address.path : formatHostPort(address);
    return new Promise((resolve, reject) => {
      this.#server.once("error", (error) => reject(listenError(error, where)));
      this.#server.listen(address, () => resolve(this.#server.address()));
    });
  }

  /** Takes no more connections, and ends those that the gRPC server does not have yet. */
  close(): void {
    this.#server.close();
    for (const socket of this.#inHandshake) socket.destroy();
  }

  /**
   * Each connection has a TLS server of its own: that is how Node tells which one failed. It also means that no session is
   * resumed, so that each certificate is verified.
   */
  #secure(raw: Socket, tls: AgentTls): void {
    const peer = formatHostPort({ host: raw.remoteAddress ?? "unknown", port: raw.remotePort ?? 0 });
    const [oldest] = this.#inHandshake;
    if (this.#inHandshake.size >= HANDSHAKES) oldest?.destroy();
    this.#inHandshake.add(raw);
    raw.once("close", () => this.#inHandshake.delete(raw));
    const server = createTlsServer(tlsOptions(tls));
    server.on("tlsClientError", (error, socket) => {
      this.#refuse(raw, { peer, reason: reasonOf(error, socket) });
    });
    server.on("secureConnection", (socket) => {
      this.#inHandshake.delete(raw);
      socket.on("error", () => undefined);
      socket.disableRenegotiation();
      // Both cannot be, by the options. A mistake there must not let anybody in.
      if (!socket.authorized || socket.alpnProtocol !== "h2") {
        this.#refuse(socket, { peer, reason: "it has no verified certificate or does not speak HTTP/2" });
      } else this.#admit(socket, peer, certificateFacts(socket.getPeerCertificate()));
    });
    server.emit("connection", raw);
  }

  #admit(socket: Socket, peer: string, certificate: CertificateFacts | undefined): void {
    const { connections, connectionsPerClient } = this.#limits;
    const key = certificate?.fingerprint;
    const own = key === undefined ? 0 : (this.#perCertificate.get(key) ?? 0);
    const facts = { peer, ...certificate };
    if (this.#open.size >= connections) {
      this.#refuse(socket, { ...facts, reason: `there are ${connections} connections` });
      return;
    }
    if (own >= connectionsPerClient) {
      this.#refuse(socket, { ...facts, reason: `it has ${connectionsPerClient} connections` });
      return;
    }
    this.#open.add(socket);
    if (key !== undefined) this.#perCertificate.set(key, own + 1);
    socket.once("close", () => this.#leave(socket, key));
    this.#admitted(socket);
  }

  #leave(socket: Socket, key: string | undefined): void {
    this.#open.delete(socket);
    if (key === undefined) return;
    const left = (this.#perCertificate.get(key) ?? 1) - 1;
    if (left === 0) this.#perCertificate.delete(key);
    else this.#perCertificate.set(key, left);
  }

  #refuse(socket: Socket, facts: AuditEntry): void {
    socket.destroy();
    this.#refused(facts);
  }
}

function tlsOptions(files: AgentTls): TlsOptions {
  return {
    ...files,
    requestCert: true,
    rejectUnauthorized: true,
    minVersion: "TLSv1.2",
    ALPNProtocols: ["h2"],
    handshakeTimeout: HANDSHAKE_MS,
  };
}

/** A certificate that does not verify is told by a code such as CERT_HAS_EXPIRED, everything else by OpenSSL's words. */
function reasonOf(error: Error, socket: TLSSocket): string {
  // Typed as an Error; it is null or a code.
  const untrusted: unknown = socket.authorizationError;
  if (typeof untrusted === "string") return `its certificate is not trusted: ${untrusted}`;
  const code = errnoOf(error);
  return code === "ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE"
    ? "it has no certificate"
    : `the TLS handshake failed: ${code ?? error.message}`;
}

function listenError(error: Error, where: string): Error {
  if (errnoOf(error) === "EADDRINUSE") {
    return new FleeceError("AGENT_RUNNING", `Another process answers on ${where}`, { cause: error });
  }
  const known = fileError(error, "listen on", where);
  if (known instanceof FleeceError) return known;
  const message = `Cannot listen on ${where}: ${errorMessage(error)}`;
  return new FleeceError("INVALID_ARGUMENT", message, { cause: error });
}
