import { randomFillSync } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, open, rename, rm } from "node:fs/promises";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { BoundProcess } from "../../support/bound-process.js";
import { qemuImg, writeImage } from "../../support/image-tool.js";

const MIB = 2 ** 20;
const START_MS = 20_000;
/** Images and packages that are kept for the next run. */
export const cacheDirectory = fileURLToPath(new URL("../../../var/bench", import.meta.url));

export type BenchImage = { readonly path: string; readonly format: "qcow2" | "raw" };

/** A server with one export, `disk`, that ends when it is disposed of. */
export class BenchExport implements AsyncDisposable {
  readonly socketPath: string;
  readonly #process: BoundProcess;

  private constructor(process: BoundProcess, socketPath: string) {
    this.#process = process;
    this.socketPath = socketPath;
  }

  get uri(): string {
    return `nbd+unix:///disk?socket=${this.socketPath}`;
  }

  static async storageDaemon(
    socketPath: string,
    { path, format }: BenchImage,
    options: { readonly writable?: boolean } = {},
  ): Promise<BenchExport> {
    const [writable, readOnly] = options.writable === true ? ["on", "off"] : ["off", "on"];
    const shape = `driver=${format},node-name=d,discard=unmap,read-only=${readOnly}`;
    const node = `${shape},file.driver=file,file.filename=${path}`;
    const args = ["--nbd-server", `addr.type=unix,addr.path=${socketPath},max-connections=0`];
    args.push("--blockdev", node, "--export", `type=nbd,id=e,node-name=d,name=disk,writable=${writable}`);
    return await this.#start(await BoundProcess.start("qemu-storage-daemon", args), socketPath);
  }

  /** As it is used by hand: `qemu-nbd -t`. */
  static async qemuNbd(socketPath: string, { path, format }: BenchImage): Promise<BenchExport> {
    const args = ["-t", "-e", "8", "-x", "disk", "-k", socketPath, "-f", format, path];
    return await this.#start(await BoundProcess.start("qemu-nbd", args), socketPath);
  }

  /** It serves any export name. */
  static async nbdkit(socketPath: string, ...plugin: string[]): Promise<BenchExport> {
    const args = ["-f", "-U", socketPath, ...plugin];
    return await this.#start(await BoundProcess.start("nbdkit", args), socketPath);
  }

  static async #start(server: BoundProcess, socketPath: string): Promise<BenchExport> {
    const deadline = performance.now() + START_MS;
    while (!(await accepts(socketPath))) {
      if (!server.running || performance.now() > deadline) {
        await server[Symbol.asyncDispose]();
        throw new Error(`The server does not listen on ${socketPath}: ${server.stderr}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return new BenchExport(server, socketPath);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stop("SIGTERM");
    await rm(this.socketPath, { force: true });
  }
}

async function accepts(socketPath: string): Promise<boolean> {
  return await new Promise<boolean>((resolve) => {
    const socket = connect(socketPath);
    socket.on("connect", () => socket.end(() => resolve(true)));
    socket.on("error", () => resolve(false));
  });
}

/** A qcow2 image full of random data, made once and in the page cache afterwards. */
export async function randomImage(sizeBytes: number, directory = cacheDirectory): Promise<BenchImage> {
  await mkdir(directory, { recursive: true });
  const path = `${directory}/random-${sizeBytes / MIB}.qcow2`;
  if (!existsSync(path)) {
    const raw = `${path}.raw`;
    await writeRandom(raw, sizeBytes);
    await qemuImg("convert", "-q", "-f", "raw", "-O", "qcow2", raw, `${path}.part`);
    await rm(raw);
    await rename(`${path}.part`, path);
  }
  await warm(path);
  return { path, format: "qcow2" };
}

export async function writeRandom(path: string, sizeBytes: number): Promise<void> {
  const file = await open(path, "w");
  try {
    const block = Buffer.alloc(4 * MIB);
    for (let at = 0; at < sizeBytes; at += block.length) {
      await file.write(randomFillSync(block), 0, Math.min(block.length, sizeBytes - at), at);
    }
  } finally {
    await file.close();
  }
}

export interface SparseShape {
  readonly sizeBytes: number;
  readonly pieces: number;
  readonly pieceBytes: number;
}

/** A large qcow2 image with little in it: pieces of data at equal distances. Made once. */
export async function sparseImage(shape: SparseShape, directory = cacheDirectory): Promise<BenchImage> {
  const { sizeBytes, pieces, pieceBytes } = shape;
  await mkdir(directory, { recursive: true });
  const path = `${directory}/sparse-${sizeBytes / MIB}-${pieces}x${pieceBytes / MIB}.qcow2`;
  if (!existsSync(path)) {
    await qemuImg("create", "-q", "-f", "qcow2", `${path}.part`, String(sizeBytes));
    const at = (index: number) => (sizeBytes / pieces) * index;
    const writes = Array.from({ length: pieces }, (_, index) => `write -P 90 ${at(index)} ${pieceBytes}`);
    await writeImage(`${path}.part`, "qcow2", ...writes);
    await rename(`${path}.part`, path);
  }
  await warm(path);
  return { path, format: "qcow2" };
}

/** Reads the file once, so that no run pays for the disk. */
export async function warm(path: string): Promise<void> {
  const file = await open(path, "r");
  try {
    const block = Buffer.alloc(4 * MIB);
    while ((await file.read(block, 0, block.length)).bytesRead > 0);
  } finally {
    await file.close();
  }
}

/** A fresh, empty image. */
export async function freshImage(path: string, sizeBytes: number): Promise<BenchImage> {
  await rm(path, { force: true });
  await qemuImg("create", "-q", "-f", "qcow2", path, String(sizeBytes));
  return { path, format: "qcow2" };
}
