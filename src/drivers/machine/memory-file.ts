import type { FileHandle } from "node:fs/promises";
import { rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import type { NewFile } from "../../model/domain-snapshot-plan.js";
import { fileError } from "../../shared/errors.js";
import { createPrivate, linkFile } from "../durable-files.js";
import { checkSocketPath, makeRuntimeDirectory, processDirectoryPath } from "../runtime-directory.js";

/**
 * Where QEMU's memory goes: a private socket on which we listen, and from there into a file. Node cannot hand QEMU the file itself. A
 * file that cannot be written is told to QEMU by the end of the connection.
 */
export class MemoryFile implements AsyncDisposable {
  readonly socketPath: string;
  /** Set when the file cannot be written, or the connection breaks. */
  failure: unknown;
  /** Resolves when QEMU has closed the connection and all is in the file, or writing has failed. Never rejects. */
  readonly received: Promise<void>;
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #server: Server;
  readonly #directory: string;
  #socket: Socket | undefined;
  #onFailure: () => void = () => undefined;
  #sizeBytes = 0;

  private constructor(file: FileHandle, path: string, directory: string) {
    this.#file = file;
    this.#path = path;
    this.#directory = directory;
    this.socketPath = checkSocketPath(join(directory, "memory.sock"));
    this.#server = createServer();
    // QEMU connects once, and nobody else can: the directory is ours alone.
    this.#server.maxConnections = 1;
    this.received = new Promise((resolve) => {
      this.#server.once("connection", (socket) => {
        this.#socket = socket;
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

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Called once, when writing fails. */
  onFailure(listener: () => void): void {
    this.#onFailure = listener;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket?.destroy();
    this.#server.close();
    if (this.#socket !== undefined) await this.received;
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
      for await (const chunk of socket) await this.#write(chunk as Buffer);
    } catch (error) {
      this.failure = fileError(error, "write", this.#path);
      socket.destroy();
      this.#onFailure();
    }
  }

  async #write(chunk: Buffer): Promise<void> {
    for (let done = 0; done < chunk.length;) {
      const { bytesWritten } = await this.#file.write(chunk, done, chunk.length - done);
      done += bytesWritten;
      this.#sizeBytes += bytesWritten;
    }
  }
}
