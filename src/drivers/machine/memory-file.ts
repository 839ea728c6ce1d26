import { type ChildProcess, spawn } from "node:child_process";
import type { FileHandle } from "node:fs/promises";
import { rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import type { NewFile } from "../../model/domain-snapshot-plan.js";
import { errnoOf, FleeceError } from "../../shared/errors.js";
import { createPrivate, linkFile } from "../durable-files.js";
import { checkSocketPath, makeRuntimeDirectory, processDirectoryPath } from "../runtime-directory.js";
import { cleanOutput, toolFailure } from "../tool-failure.js";

/**
 * Where QEMU's memory goes: a private socket on which we listen, and from there into a file. Node cannot hand QEMU the file itself, and
 * takes four times as long as `cat` to copy, while the guest stands still: so `cat` gets both ends, and nobody else keeps the
 * connection. Thus a file that cannot be written is told to QEMU by the end of the connection, and QEMU's end ends `cat`, also
 * without us.
 */
export class MemoryFile implements AsyncDisposable {
  readonly socketPath: string;
  /** Set when the file cannot be written: NO_SPACE, MEMORY_SAVE_FAILED and others. */
  failure: unknown;
  /** Resolves when QEMU has closed the connection and all is in the file, or copying has failed. Never rejects. */
  readonly received: Promise<void>;
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #server: Server;
  readonly #directory: string;
  #copier: ChildProcess | undefined;
  #onFailure: () => void = () => undefined;
  #sizeBytes = 0;

  private constructor(file: FileHandle, path: string, directory: string) {
    this.#file = file;
    this.#path = path;
    this.#directory = directory;
    this.socketPath = checkSocketPath(join(directory, "memory.sock"));
    // What Node reads would be missing in the file.
    this.#server = createServer({ pauseOnConnect: true });
    // QEMU connects once, and nobody else can: the directory is ours alone.
    this.#server.maxConnections = 1;
    this.received = new Promise((resolve) => {
      this.#server.once("connection", (socket) => {
        this.#receive(socket).then(resolve, resolve);
      });
    });
  }

  /** The file must not exist; the caller has registered its undoing. */
  static async create(newFile: NewFile, runtimeRoot: string): Promise<MemoryFile> {
    const directory = processDirectoryPath(runtimeRoot);
    await makeRuntimeDirectory(directory);
    const file = await createPrivate(newFile.firstName).catch(async (error: unknown) => {
      await rm(directory, { recursive: true, force: true });
      throw error;
    });
    const memory = new MemoryFile(file, newFile.path, directory);
    try {
      await linkFile(newFile.firstName, newFile.path);
      await memory.#listen();
      return memory;
    } catch (error) {
      await memory[Symbol.asyncDispose]();
      throw error;
    }
  }

  get isConnected(): boolean {
    return this.#copier !== undefined;
  }

  /** Once all is received. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Called once, when writing fails. */
  onFailure(listener: () => void): void {
    this.#onFailure = listener;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    if (this.#copier !== undefined) {
      this.#copier.kill("SIGKILL");
      await this.received;
    }
    await this.#file.close();
    await rm(this.#directory, { recursive: true, force: true });
  }

  async #listen(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject).listen(this.socketPath, resolve);
    });
  }

  async #receive(socket: Socket): Promise<void> {
    try {
      await this.#copy(socket);
      this.#sizeBytes = (await this.#file.stat()).size;
    } catch (error) {
      this.failure = error;
      this.#onFailure();
    }
  }

  async #copy(socket: Socket): Promise<void> {
    // In a session of its own: the terminal's interrupt is for us, who tell QEMU first.
    const copier = spawn(COPIER, [], {
      stdio: [socket, this.#file.fd, "pipe"],
      env: { ...process.env, LC_ALL: "C" },
      detached: true,
    });
    this.#copier = copier;
    socket.destroy();
    let said = "";
    copier.stderr?.setEncoding("utf8").on("data", (text: string) => (said += text));
    await new Promise<void>((resolve, reject) => {
      copier.once("error", (cause) =>
        reject(this.#failed({ errno: errnoOf(cause), ending: "did not start", cause })),
      );
      copier.once("close", (code, killer) => {
        if (code === 0) resolve();
        const ending =
          killer === null ? `ended with exit code ${code ?? "unknown"}` : `was ended by ${killer}`;
        reject(this.#failed({ output: cleanOutput(said, COPIER), ending }));
      });
    });
  }

  #failed(ending: {
    errno?: string | undefined;
    output?: string;
    ending: string;
    cause?: unknown;
  }): FleeceError {
    const failure = toolFailure(COPIER, { output: "", path: this.#path, ...ending });
    if (failure.code !== "QEMU_FAILED") return failure;
    return new FleeceError("MEMORY_SAVE_FAILED", failure.message, { cause: failure, facts: failure.facts });
  }
}

const COPIER = "cat";
