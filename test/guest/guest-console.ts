import { EventEmitter, once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";

export interface CommandAnswer {
  readonly exitStatus: number;
  readonly lines: readonly string[];
}

const commandTimeoutMs = 120_000;

/**
 * The host's end of a guest's serial line. It listens before QEMU connects, so that no line is lost. A QEMU that is
 * started later with the same argument list takes over the line from the one before.
 */
export class GuestConsole {
  readonly path: string;
  /** Everything that the guest has printed, line by line, over all its starts. */
  readonly lines: string[] = [];
  readonly #server: Server;
  readonly #arrivals = new EventEmitter();
  #socket: Socket | undefined;
  #connectionStart = 0;
  #nextId = 1;

  private constructor(path: string, server: Server) {
    this.path = path;
    this.#server = server;
    this.#arrivals.setMaxListeners(0);
    server.on("connection", (socket) => this.#accept(socket));
  }

  static async listen(path: string): Promise<GuestConsole> {
    const server = createServer();
    server.listen(path);
    await once(server, "listening");
    return new GuestConsole(path, server);
  }

  /** How many of the lines came before the QEMU that is connected now, or was last. */
  get connectionStart(): number {
    return this.#connectionStart;
  }

  /** Calls `listener` with each line from now on; the result ends that. */
  onLine(listener: (line: string) => void): () => void {
    this.#arrivals.on("line", listener);
    return () => this.#arrivals.off("line", listener);
  }

  /** The first line that matches, of those after the first `after` (default 0: all there are). Rejects in time. */
  async waitFor(pattern: RegExp, options: { timeoutMs: number; after?: number }): Promise<RegExpExecArray> {
    const signal = AbortSignal.timeout(options.timeoutMs);
    for (let index = options.after ?? 0; ; index++) {
      while (index >= this.lines.length) await this.#nextLine(pattern, signal);
      const match = pattern.exec(this.lines[index] ?? "");
      if (match !== null) return match;
    }
  }

  /** Any command of the guest's init script, or of its shell. A failure is an exit status, not an exception. */
  async command(
    text: string,
    options: { timeoutMs: number } = { timeoutMs: commandTimeoutMs },
  ): Promise<CommandAnswer> {
    const id = this.#nextId++;
    const after = this.lines.length;
    this.#socket?.write(`${id} ${text}\n`);
    const end = await this.waitFor(new RegExp(`^END ${id} (\\d+)$`), { ...options, after });
    const prefix = `R ${id} `;
    const lines = this.lines.slice(after).filter((line) => line.startsWith(prefix));
    return { exitStatus: Number(end[1]), lines: lines.map((line) => line.slice(prefix.length)) };
  }

  close(): void {
    this.#socket?.destroy();
    this.#server.close();
  }

  /** What a QEMU that ended had printed of its last line is dropped. */
  #accept(socket: Socket): void {
    this.#socket = socket;
    this.#connectionStart = this.lines.length;
    let rest = "";
    socket.setEncoding("latin1").on("error", () => undefined);
    socket.on("data", (text: string) => {
      if (socket !== this.#socket) return;
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.#take(line.trimEnd());
    });
  }

  #take(line: string): void {
    this.lines.push(line);
    this.#arrivals.emit("line", line);
  }

  async #nextLine(pattern: RegExp, signal: AbortSignal): Promise<void> {
    try {
      await once(this.#arrivals, "line", { signal });
    } catch (cause) {
      const last = this.lines.slice(-20).join("\n");
      throw new Error(`Expected a line like ${pattern.source} from the guest, the last ones are:\n${last}`, {
        cause,
      });
    }
  }
}
