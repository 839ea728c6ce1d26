import { connect, createServer, type Server, type Socket } from "node:net";

/** `commands`: from the chosen one on, they are lost. `replies`: they are carried out, and nobody is told. */
export type Lost = "commands" | "replies";

/**
 * Stands between a monitor's clients and the monitor, and loses what comes after a client's chosen command, so that the
 * command hangs for as long as a test wants. One client at a time, as with the monitor itself.
 */
export class QmpProxy implements AsyncDisposable {
  /** What clients have sent after the command at which they were stalled. */
  readonly sentInVain: string[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #monitorPath: string;
  #stallAt: RegExp | undefined;
  #lost: Lost = "commands";
  #turnsAway = false;
  #refuse: RegExp | undefined;
  #rewrite: readonly [pattern: RegExp, replacement: string] | undefined;
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
  stallAt(pattern: RegExp, lost: Lost = "commands"): Promise<void> {
    this.#stallAt = pattern;
    this.#lost = lost;
    return new Promise((resolve) => (this.#stalled = resolve));
  }

  /** The next command that matches is not carried out, and fails. */
  refuse(pattern: RegExp): void {
    this.#refuse = pattern;
  }

  /** Whether that command has come. */
  get hasRefused(): boolean {
    return this.#refuse === undefined;
  }

  /** The next command that matches is another one: what matches in it is replaced. */
  rewrite(pattern: RegExp, replacement: string): void {
    this.#rewrite = [pattern, replacement];
  }

  /** Whether new clients are hung up on without a greeting. */
  turnAway(turnsAway: boolean): void {
    this.#turnsAway = turnsAway;
  }

  /** Ends the connections there are; new clients are served. */
  hangUp(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#sockets.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #serve(client: Socket): Promise<void> {
    if (this.#turnsAway) {
      client.destroy();
      return;
    }
    const monitor = connect(this.#monitorPath);
    this.#sockets.add(monitor);
    monitor.on("error", () => client.destroy());
    monitor.pipe(client);
    let isStalled = false;
    client.on("data", (chunk) => {
      const text = chunk.toString("latin1");
      if (this.#refuse?.test(text) === true) {
        this.#refuse = undefined;
        const [, id] = /"id":"([^"]+)"/.exec(text) ?? [];
        client.write(`${JSON.stringify({ id, error: { class: "GenericError", desc: "Refused" } })}\r\n`);
        return;
      }
      if (isStalled) this.sentInVain.push(text);
      if (!isStalled && this.#stallAt?.test(text) === true) {
        isStalled = true;
        this.#stallAt = undefined;
        if (this.#lost === "replies") monitor.unpipe(client).resume();
        this.#stalled();
      }
      if (!isStalled || this.#lost === "replies") monitor.write(this.#rewritten(chunk));
    });
    client.resume();
    await new Promise((resolve) => client.once("close", resolve));
    monitor.destroy();
  }

  #rewritten(chunk: Buffer): Buffer {
    const text = chunk.toString("latin1");
    if (this.#rewrite?.[0].test(text) !== true) return chunk;
    const changed = text.replace(...this.#rewrite);
    this.#rewrite = undefined;
    return Buffer.from(changed, "latin1");
  }
}
