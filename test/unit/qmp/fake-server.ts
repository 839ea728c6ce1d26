import { createServer, type Server, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { connectQmp, type QmpConnectOptions, type QmpSession } from "../../../src/qmp/index.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";

export interface FakeCommand {
  readonly execute: string;
  readonly id: string;
  readonly arguments?: Readonly<Record<string, unknown>>;
}

export const greetingLine = JSON.stringify({
  QMP: { version: { qemu: { major: 7, minor: 2, micro: 22 }, package: "fake" }, capabilities: ["oob"] },
});

/** The server's side of one connection, driven by the test. */
export class FakePeer {
  readonly socket: Socket;
  readonly #lines: AsyncIterator<string>;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("error", () => undefined);
    this.#lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  }

  send(message: object): void {
    this.sendRaw(`${JSON.stringify(message)}\r\n`);
  }

  sendRaw(bytes: string | Uint8Array): void {
    this.socket.write(bytes);
  }

  sendEvent(event: string, data: object = {}): void {
    this.send({ event, data, timestamp: { seconds: 1, microseconds: 2 } });
  }

  async command(): Promise<FakeCommand> {
    const line = await this.#lines.next();
    if (line.done === true) throw new Error("Expected a command, got the end of the connection");
    return JSON.parse(line.value) as FakeCommand;
  }

  /** Takes the next command, which must be the one named, and answers it. */
  async answer(execute: string, value: unknown = {}): Promise<FakeCommand> {
    const command = await this.command();
    if (command.execute !== execute) throw new Error(`Expected ${execute}, got ${command.execute}`);
    this.send({ return: value, id: command.id });
    return command;
  }

  async handshake(): Promise<void> {
    this.sendRaw(`${greetingLine}\r\n`);
    await this.answer("qmp_capabilities");
  }
}

/** Listens on a Unix socket; what it says is up to the test. */
export class FakeServer implements AsyncDisposable {
  readonly socketPath: string;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(socketPath: string, server: Server) {
    this.socketPath = socketPath;
    this.#server = server;
  }

  static async start(onConnection: (peer: FakePeer) => void): Promise<FakeServer> {
    const directory = await temporaryDirectory();
    const server = createServer();
    const fake = untilTestEnds(new FakeServer(directory.file("qmp"), server));
    server.on("connection", (socket) => {
      fake.#sockets.add(socket);
      onConnection(new FakePeer(socket));
    });
    await new Promise<void>((resolve) => server.listen(fake.socketPath, resolve));
    return fake;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

export interface FakeSession {
  readonly session: QmpSession;
  readonly peer: FakePeer;
}

/** A session that has been negotiated with a fake peer. */
export async function fakeSession(options: Partial<QmpConnectOptions> = {}): Promise<FakeSession> {
  let peer: FakePeer | undefined;
  const server = await FakeServer.start((connected) => {
    peer = connected;
    void connected.handshake();
  });
  const session = untilTestEnds(await connectQmp({ socketPath: server.socketPath, ...options }));
  if (peer === undefined) throw new Error("Expected the server to have seen the connection");
  return { session, peer };
}

/** Resolves with what the promise rejects with. */
export async function failureOf(promise: Promise<unknown>): Promise<unknown> {
  return await promise.then(
    (value) => new Error(`Expected a failure, got ${JSON.stringify(value)}`),
    (error: unknown) => error,
  );
}
