import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";

/** A private directory (mode 0700) whose path is short enough for Unix sockets, removed when disposed. */
export class TemporaryDirectory implements AsyncDisposable {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  static async create(): Promise<TemporaryDirectory> {
    // Not os.tmpdir(): TMPDIR may be long, and a socket's path must stay under 108 bytes.
    return new TemporaryDirectory(await mkdtemp("/tmp/fl-"));
  }

  file(name: string): string {
    return join(this.path, name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.path, { recursive: true, force: true, maxRetries: 3 });
  }
}
