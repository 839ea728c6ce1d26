import { createServer, type Server, type Socket } from "node:net";

export interface AgentCommand {
  readonly execute: string;
  readonly arguments?: { readonly id?: number };
}

/** What to send for a command: an answer, bytes as they are, or nothing. */
export type AgentScript = (
  command: AgentCommand,
  agent: ScriptedGuestAgent,
) => object | Buffer | string | undefined;

/**
 * A stand-in for the guest agent, for misbehaviour that the real one does not show on demand. Without a script it obeys;
 * what a script gives for a command is sent instead, `undefined` for silence.
 */
export class ScriptedGuestAgent implements AsyncDisposable {
  frozen = false;
  /** Names of all commands that have come, in order. */
  readonly commands: string[] = [];
  /** Sent to each client before anything else. */
  greeting: Buffer | undefined;
  script: AgentScript = (command, agent) => agent.obey(command);
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server) {
    this.#server = server;
    server.on("connection", (socket) => this.#serve(socket));
  }

  static async listen(path: string): Promise<ScriptedGuestAgent> {
    const server = createServer();
    const agent = new ScriptedGuestAgent(server);
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return agent;
  }

  obey({ execute, arguments: args }: AgentCommand): object | Buffer {
    const names = ["guest-info", "guest-fsfreeze-freeze", "guest-fsfreeze-status", "guest-fsfreeze-thaw"];
    const wasFrozen = this.frozen;
    switch (execute) {
      case "guest-sync-delimited":
        return Buffer.concat([Buffer.of(0xff), Buffer.from(`${JSON.stringify({ return: args?.id })}\n`)]);
      case "guest-info":
        return { return: { supported_commands: names.map((name) => ({ name, enabled: true })) } };
      case "guest-fsfreeze-status":
        return { return: this.frozen ? "frozen" : "thawed" };
      case "guest-fsfreeze-freeze":
        this.frozen = true;
        return { return: 1 };
      case "guest-fsfreeze-thaw":
        this.frozen = false;
        return { return: wasFrozen ? 1 : 0 };
      default:
        return { error: { class: "CommandNotFound", desc: `The command ${execute} has not been found` } };
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("error", () => undefined);
    if (this.greeting !== undefined) socket.write(this.greeting);
    let rest = "";
    socket.setEncoding("latin1").on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        // The real one too drops what stands before the delimiter.
        const command = JSON.parse(line.slice(line.lastIndexOf("\xff") + 1)) as AgentCommand;
        this.commands.push(command.execute);
        const answer = this.script(command, this);
        if (answer === undefined) continue;
        const isRaw = typeof answer === "string" || Buffer.isBuffer(answer);
        socket.write(isRaw ? answer : `${JSON.stringify(answer)}\n`);
      }
    });
  }
}
