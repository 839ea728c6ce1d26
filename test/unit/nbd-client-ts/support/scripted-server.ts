import { createServer, type Server, type Socket } from "node:net";
import { TemporaryDirectory } from "../../../support/temporary-directory.js";
import {
  ALL_FLAGS,
  blockSizeInfo,
  exportInfo,
  greeting,
  OPT,
  optionReply,
  REP,
  REP_ERR,
  u32,
} from "./server-bytes.js";

export interface ReceivedRequest {
  readonly magic: number;
  readonly flags: number;
  readonly command: number;
  readonly cookie: number;
  readonly offset: number;
  readonly length: number;
  readonly payload: Buffer;
}

export interface ScriptedExport {
  readonly sizeBytes?: number;
  readonly transmissionFlags?: number;
  readonly structured?: boolean;
  /** Knows extended headers, default false. */
  readonly extended?: boolean;
  /** Context names by id. */
  readonly contexts?: Readonly<Record<number, string>>;
  readonly blockSize?: readonly [minimum: number, preferred: number, maximum: number];
}

/** With extended headers every payload of a client is announced by this flag. */
const PAYLOAD_LEN = 32;

/** The server's side of one connection: takes and sends bytes exactly as the script says. */
export class Peer {
  readonly #socket: Socket;
  #buffered = Buffer.alloc(0);
  #ended = false;
  #headerBytes = 28;
  #wake: () => void = () => undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("readable", () => this.#wake());
    socket.on("error", () => undefined); // the client may vanish, and often is meant to
    for (const event of ["end", "close"]) {
      socket.on(event, () => {
        this.#ended = true;
        this.#wake();
      });
    }
  }

  /** Takes exactly `length` bytes, and nothing off the socket that it does not need. */
  async receive(length: number): Promise<Buffer> {
    while (this.#buffered.length < length) {
      const next = this.#socket.read() as Buffer | null;
      if (next !== null) this.#buffered = Buffer.concat([this.#buffered, next]);
      else if (this.#ended) throw new Error("The client hung up");
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const taken = this.#buffered.subarray(0, length);
    this.#buffered = this.#buffered.subarray(length);
    return taken;
  }

  /** Resolves when the client has hung up. */
  async hungUp(): Promise<void> {
    await this.receive(Infinity).catch(() => undefined);
  }

  async receiveRequest(): Promise<ReceivedRequest> {
    const header = await this.receive(this.#headerBytes);
    const command = header.readUInt16BE(6);
    const flags = header.readUInt16BE(4);
    const isExtended = this.#headerBytes === 32;
    const length = isExtended ? Number(header.readBigUInt64BE(24)) : header.readUInt32BE(24);
    const hasPayload = isExtended ? (flags & PAYLOAD_LEN) !== 0 : command === 1;
    return {
      magic: header.readUInt32BE(0),
      flags,
      command,
      cookie: Number(header.readBigUInt64BE(8)),
      offset: Number(header.readBigUInt64BE(16)),
      length,
      payload: hasPayload ? await this.receive(length) : Buffer.alloc(0),
    };
  }

  async receiveRequests(count: number): Promise<ReceivedRequest[]> {
    const requests: ReceivedRequest[] = [];
    while (requests.length < count) requests.push(await this.receiveRequest());
    return requests;
  }

  /** Resolves when the kernel has taken the bytes. */
  async send(...parts: readonly Buffer[]): Promise<void> {
    for (const part of parts) {
      await new Promise<void>((resolve) => this.#socket.write(part, () => resolve()));
    }
  }

  hangUp(): void {
    this.#socket.end();
  }

  async receiveOption(): Promise<{ readonly option: number; readonly data: Buffer }> {
    const header = await this.receive(16);
    return { option: header.readUInt32BE(8), data: await this.receive(header.readUInt32BE(12)) };
  }

  /** A correct handshake for one export. */
  async enter(offered: ScriptedExport = {}): Promise<void> {
    await this.send(greeting());
    await this.receive(4);
    for (;;) {
      const { option } = await this.receiveOption();
      await this.send(...optionReplies(option, offered));
      if (option === OPT.EXTENDED_HEADERS && offered.extended === true) this.#headerBytes = 32;
      if (option === OPT.GO) return;
    }
  }
}

function optionReplies(option: number, offered: ScriptedExport): Buffer[] {
  const ack = optionReply(option, REP.ACK);
  if (option === OPT.GO) {
    const size = exportInfo(offered.sizeBytes ?? 1 << 20, offered.transmissionFlags ?? ALL_FLAGS);
    const infos = [size, blockSizeInfo(...(offered.blockSize ?? [1, 4096, 32 << 20]))];
    return [...infos.map((info) => optionReply(option, REP.INFO, info)), ack];
  }
  if (option === OPT.STRUCTURED_REPLY && offered.structured !== false) return [ack];
  if (option === OPT.EXTENDED_HEADERS && offered.extended === true) return [ack];
  if (option === OPT.SET_META_CONTEXT) {
    const contexts = Object.entries(offered.contexts ?? {});
    const replies = contexts.map(([id, name]) => Buffer.concat([u32(Number(id)), Buffer.from(name)]));
    return [...replies.map((payload) => optionReply(option, REP.META_CONTEXT, payload)), ack];
  }
  return [optionReply(option, REP_ERR.UNSUP)];
}

/** An in-test server that plays a script to every client. Dispose of it at the end of the test. */
export class ScriptedServer implements AsyncDisposable {
  readonly socketPath: string;
  /** What a script threw, if one did. */
  failure: unknown;
  readonly #directory: TemporaryDirectory;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(directory: TemporaryDirectory, script: (peer: Peer) => Promise<void>) {
    this.#directory = directory;
    this.socketPath = directory.file("nbd.sock");
    this.#server = createServer((socket) => {
      this.#sockets.add(socket);
      script(new Peer(socket)).catch((error: unknown) => (this.failure = error));
    });
  }

  static async start(script: (peer: Peer) => Promise<void>): Promise<ScriptedServer> {
    const server = new ScriptedServer(await TemporaryDirectory.create(), script);
    await new Promise<void>((resolve) => server.#server.listen(server.socketPath, resolve));
    return server;
  }

  /** Listens on a free port of 127.0.0.1 instead, and returns it. */
  async moveToTcp(): Promise<number> {
    await new Promise((resolve) => this.#server.close(resolve));
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("The server has no port");
    return address.port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
    await this.#directory[Symbol.asyncDispose]();
  }
}
