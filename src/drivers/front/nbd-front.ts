import { chmod } from "node:fs/promises";
import { createServer, type AddressInfo, type Server, type Socket } from "node:net";
import type { TlsOptions } from "node:tls";
import { isMainThread } from "node:worker_threads";
import type { Clock } from "../../ports/clock.js";
import type { ExportFront, ExportGrant, FrontAddress, FrontStats } from "../../ports/export-front.js";
import type { Logger } from "../../ports/logger.js";
import { errnoOf, errorMessage, FleeceError } from "../../shared/errors.js";
import { checkSocketPath } from "../runtime-directory.js";
import { FrontConnection } from "./front-connection.js";
import { tlsOptions, type ClientIdentity, type FrontTlsFiles } from "./front-tls.js";
import { Grants } from "./grants.js";
import { Refusal } from "./refusal.js";

export interface FrontLimits {
  /** From the first byte to the transmission phase, TLS included. */
  readonly handshakeMs: number;
  readonly connections: number;
  /** Of one certificate; and of one address before it has shown a certificate, or where there is none. */
  readonly connectionsPerClient: number;
}

const DEFAULT_LIMITS: FrontLimits = { handshakeMs: 15_000, connections: 64, connectionsPerClient: 16 };

export interface NbdFrontOptions {
  /** `plaintext` shows exports granted to `any` to everybody who can connect: only where that is wanted explicitly. */
  readonly tls: FrontTlsFiles | "plaintext";
  readonly clock: Clock;
  readonly logger: Logger;
  readonly limits?: Partial<FrontLimits>;
}

/** See src/README.md, "The front". */
export class NbdFront implements ExportFront {
  readonly #tls: TlsOptions | undefined;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #limits: FrontLimits;
  readonly #grants: Grants;
  readonly #servers = new Set<Server>();
  readonly #connections = new Map<FrontConnection, Promise<void>>();
  /** Connections by certificate, and by address where no certificate was shown. */
  readonly #perClient = new Map<string, number>();
  #refusals = 0;
  #closed = false;

  /** Fails with INVALID_ARGUMENT if certificate and key cannot be used. */
  constructor(options: NbdFrontOptions) {
    this.#tls = options.tls === "plaintext" ? undefined : tlsOptions(options.tls);
    this.#clock = options.clock;
    this.#logger = options.logger;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#grants = new Grants(options.clock);
  }

  async listen(address: FrontAddress): Promise<FrontAddress> {
    if (this.#closed) throw new FleeceError("INTERNAL", "The front was closed");
    const server = createServer({ noDelay: true }, (socket) => this.#accept(socket));
    this.#servers.add(server);
    try {
      if ("socketPath" in address) await listenPrivately(server, checkSocketPath(address.socketPath));
      else await listen(server, address);
    } catch (error) {
      this.#servers.delete(server);
      throw listenError(error, address);
    }
    if ("socketPath" in address) return address;
    return { host: address.host, port: (server.address() as AddressInfo).port };
  }

  grant(grant: ExportGrant): void {
    this.#grants.add(grant);
  }

  renew(exportName: string, untilMs: number): void {
    this.#grants.renew(exportName, untilMs);
  }

  revoke(exportName: string): void {
    this.#grants.revoke(exportName);
  }

  stats(): FrontStats {
    return {
      connections: this.#connections.size,
      refusals: this.#refusals,
      grants: this.#grants.all().map((grant) => grant.stats()),
    };
  }

  async close(): Promise<void> {
    this.#closed = true;
    const closed = [...this.#servers].map(
      (server) => new Promise<void>((resolve) => server.close(() => resolve())),
    );
    this.#servers.clear();
    this.#grants.revokeAll();
    const running = [...this.#connections.values()];
    for (const connection of this.#connections.keys()) connection.end();
    await Promise.all([...closed, ...running]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #accept(socket: Socket): void {
    const peer = socket.remoteAddress ?? "unix";
    const { connections, connectionsPerClient } = this.#limits;
    const full = this.#connections.size >= connections;
    if (full || this.#count(peer) >= connectionsPerClient) {
      const reason = full ? "there are too many connections" : "it has too many connections";
      this.#refusals += 1;
      this.#logger.warn({ peer, reason }, "An NBD client was refused");
      socket.on("error", () => undefined);
      socket.destroy();
      return;
    }
    let key = peer;
    this.#add(key, 1);
    const connection = new FrontConnection(socket, peer, {
      grants: this.#grants,
      tls: this.#tls,
      clock: this.#clock,
      logger: this.#logger,
      handshakeMs: this.#limits.handshakeMs,
      admit: ({ fingerprint }: ClientIdentity) => {
        if (this.#count(fingerprint) >= connectionsPerClient)
          throw new Refusal("it has too many connections");
        this.#add(key, -1);
        key = fingerprint;
        this.#add(key, 1);
      },
      refused: () => (this.#refusals += 1),
    });
    const running = connection.run().finally(() => {
      this.#connections.delete(connection);
      this.#add(key, -1);
    });
    this.#connections.set(connection, running);
  }

  #count(client: string): number {
    return this.#perClient.get(client) ?? 0;
  }

  #add(client: string, change: 1 | -1): void {
    const count = this.#count(client) + change;
    if (count === 0) this.#perClient.delete(client);
    else this.#perClient.set(client, count);
  }
}

async function listen(
  server: Server,
  address: { readonly path: string } | { readonly host: string; readonly port: number },
): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(address, () => {
      server.off("error", reject);
      resolve();
    });
  });
}

/** The socket never has another mode, not for a moment: it is made within `listen`, before that returns. */
async function listenPrivately(server: Server, path: string): Promise<void> {
  // Only the main thread may set the umask.
  const umask = isMainThread ? process.umask(0o177) : undefined;
  const listening = listen(server, { path });
  if (umask !== undefined) process.umask(umask);
  await listening;
  await chmod(path, 0o600);
}

function listenError(error: unknown, address: FrontAddress): unknown {
  const errno = errnoOf(error);
  if (errno === undefined || error instanceof FleeceError) return error;
  const code =
    errno === "EADDRINUSE"
      ? "ALREADY_EXISTS"
      : errno === "EACCES" || errno === "EPERM"
        ? "PERMISSION_DENIED"
        : "INVALID_ARGUMENT";
  const place = "socketPath" in address ? address.socketPath : `${address.host}:${address.port}`;
  return new FleeceError(code, `Cannot listen on ${place}: ${errorMessage(error)}`, { cause: error });
}
