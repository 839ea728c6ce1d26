import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { TlsOptions } from "node:tls";
import type { Clock } from "../../ports/clock.js";
import type { Logger } from "../../ports/logger.js";
import { errorMessage } from "../../shared/errors.js";
import { ClientGone, ClientStream } from "./client-stream.js";
import { secure, type ClientIdentity } from "./front-tls.js";
import type { Grants } from "./grants.js";
import { awaitStartTls, consentToTls, greet, Negotiation, type Chosen } from "./negotiation.js";
import { Refusal } from "./refusal.js";
import { splice } from "./splice.js";

/** A denied export's name is the client's text: this much of it is worth a line. */
const LOGGED_NAME_CHARACTERS = 200;

export interface ConnectionHost {
  readonly grants: Grants;
  /** Undefined: in clear. */
  readonly tls: TlsOptions | undefined;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly handshakeMs: number;
  /** The client has proved who it is. Throws a Refusal if it has too many connections. */
  admit(client: ClientIdentity): void;
  refused(): void;
}

/** One client, from its first byte to its last. */
export class FrontConnection {
  readonly #socket: Socket;
  readonly #peer: string;
  readonly #host: ConnectionHost;
  readonly #over = new AbortController();
  #top: Duplex;
  #client: ClientIdentity | undefined;
  #chosen: Chosen | undefined;

  constructor(socket: Socket, peer: string, host: ConnectionHost) {
    this.#socket = socket;
    this.#top = socket;
    this.#peer = peer;
    this.#host = host;
    socket.on("error", () => undefined); // `close` follows
  }

  /** Never rejects. The socket is destroyed when it resolves. */
  async run(): Promise<void> {
    try {
      const chosen = await this.#handshake();
      if (chosen === undefined) return;
      await this.#carry(chosen.chosen, chosen.client);
    } catch (error) {
      this.#tell(this.#over.signal.aborted ? this.#over.signal.reason : error);
    } finally {
      this.end();
      this.#chosen?.backend.destroy();
    }
  }

  /** Ends it at once, whatever it does. */
  end(reason: Error = new ClientGone("the connection was ended")): void {
    this.#over.abort(reason);
    this.#top.destroy();
    this.#socket.destroy();
  }

  async #handshake(): Promise<{ chosen: Chosen; client: ClientStream } | undefined> {
    const done = new AbortController();
    this.#host.clock.sleep(this.#host.handshakeMs, done.signal).then(
      () => this.end(new Refusal("it did not finish the handshake in time")),
      () => undefined,
    );
    try {
      const clear = new ClientStream(this.#socket);
      const { padded } = await greet(clear);
      const client = await this.#secured(clear);
      if (client === undefined) return undefined;
      const { grants } = this.#host;
      const visible = {
        find: (exportName: string) => grants.find(exportName, this.#client),
        list: () => grants.list(this.#client),
        denied: (exportName: string, reason: string) => this.#deny(exportName, reason),
      };
      const options = { visible, padded, signal: this.#over.signal };
      const chosen = await new Negotiation(client, options).run();
      return chosen === undefined ? undefined : { chosen, client };
    } finally {
      done.abort();
    }
  }

  async #secured(clear: ClientStream): Promise<ClientStream | undefined> {
    const { tls } = this.#host;
    if (tls === undefined) return clear;
    if (!(await awaitStartTls(clear))) return undefined;
    await consentToTls(clear);
    const { socket, client } = await secure(this.#socket, tls);
    this.#top = socket;
    // Node leaves the connection open after an attempt to renegotiate.
    socket.on("error", (error: Error) => this.end(new ClientGone(error.message)));
    this.#client = client;
    this.#host.admit(client);
    return new ClientStream(socket);
  }

  async #carry({ grant, backend }: Chosen, client: ClientStream): Promise<void> {
    const { clock, logger } = this.#host;
    const { exportName } = grant.terms;
    const facts = { ...this.#who(), exportName };
    logger.info(facts, "An NBD client reads an export");
    const early = client.detach();
    if (early.length > 0) client.socket.unshift(early);
    const signal = AbortSignal.any([this.#over.signal, grant.ended.signal]);
    const why = await splice({ client: client.socket, backend, grant, clock, signal });
    logger.info({ ...facts, why }, "An NBD client has left an export");
  }

  #deny(exportName: string, reason: string): void {
    this.#host.refused();
    const name = exportName.slice(0, LOGGED_NAME_CHARACTERS);
    this.#host.logger.warn(
      { ...this.#who(), exportName: name, reason },
      "An NBD client was denied an export",
    );
  }

  #tell(error: unknown): void {
    const facts = { ...this.#who(), reason: errorMessage(error) };
    if (error instanceof Refusal) {
      this.#host.refused();
      this.#host.logger.warn(facts, "An NBD client was refused");
    } else {
      this.#host.logger.debug(facts, "An NBD client has left");
    }
  }

  #who(): object {
    const { name, fingerprint } = this.#client ?? {};
    return { peer: this.#peer, ...(fingerprint === undefined ? {} : { client: name ?? fingerprint }) };
  }
}
