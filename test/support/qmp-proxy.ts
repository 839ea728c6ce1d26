import { connect, createServer, type Server, type Socket } from "node:net";

/**
 * Stands between a monitor's clients and the monitor, and loses what comes after a client's chosen command, so that the
 * command hangs for as long as a test wants. One client at a time, as with the monitor itself.
 */
export class QmpProxy implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #monitorPath: string;
  #stallAt: RegExp | undefined;
  #queue: Promise<unknown> = Promise.resolve();
  #stalled: () => void = () => undefined;

  private constructor(monitorPath: string) {
    this.#monitorPath = monitorPath;
    this.#server = createServer((client) => {
      this.#sockets.add(client);
      client.on("error", () => undefined).pause();
      this.#queue = this.#queue.then(() => this.#serve(client));
    });
  }

  static async listen(path: string, monitorPath: string): Promise<QmpProxy> {
    const proxy = new QmpProxy(monitorPath);
    await new Promise<void>((resolve) => proxy.#server.listen(path, resolve));
    return proxy;
  }

  /** The next client that sends what matches gets no further. Resolves when it has. */
  stallAt(pattern: RegExp): Promise<void> {
    this.#stallAt = pattern;
    return new Promise((resolve) => (this.#stalled = resolve));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #serve(client: Socket): Promise<void> {
    const monitor = connect(this.#monitorPath);
    this.#sockets.add(monitor);
    monitor.on("error", () => client.destroy());
    monitor.pipe(client);
    client.on("data", (chunk) => {
      if (this.#stallAt?.test(chunk.toString("latin1")) !== true) {
        monitor.write(chunk);
        return;
      }
      this.#stallAt = undefined;
      client.removeAllListeners("data").resume();
      this.#stalled();
    });
    client.resume();
    await new Promise((resolve) => client.once("close", resolve));
    monitor.destroy();
  }
}
