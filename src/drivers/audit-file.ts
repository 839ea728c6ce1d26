import { constants, type FileHandle, open } from "node:fs/promises";
import type { AuditEntry, AuditLog } from "../ports/audit-log.js";
import type { Clock } from "../ports/clock.js";
import { errorMessage, fileError, FleeceError } from "../shared/errors.js";

const { O_APPEND, O_CREAT, O_NOFOLLOW, O_NONBLOCK, O_RDWR } = constants;
const NEWLINE = 0x0a;

/**
 * An audit log in a file of mode 0600: one JSON object per line, each synced. The file is opened anew for each line, never
 * through a link, so whoever rotates it need not tell us.
 */
export class AuditFile implements AuditLog {
  readonly #path: string;
  readonly #clock: Clock;
  #last: Promise<void> = Promise.resolve();

  constructor(path: string, clock: Clock) {
    this.#path = path;
    this.#clock = clock;
  }

  write(entry: AuditEntry): Promise<void> {
    const line = `${JSON.stringify({ time: new Date(this.#clock.now()).toISOString(), ...entry })}\n`;
    const written = this.#last.then(() => this.#append(line));
    this.#last = written.catch(() => undefined);
    return written;
  }

  async #append(line: string): Promise<void> {
    try {
      await using file = await open(this.#path, O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK, 0o600);
      const found = await file.stat();
      if (!found.isFile()) throw new Error(`${this.#path} is not a regular file`);
      // Half a line that an error or a kill left must not spoil the next one.
      const start = (await endsInLine(file, found.size)) ? "" : "\n";
      await file.appendFile(`${start}${line}`);
      await file.datasync();
    } catch (error) {
      const cause = fileError(error, "write the audit log", this.#path);
      throw new FleeceError("AUDIT_FAILED", `Nothing may be changed now: ${errorMessage(cause)}`, {
        cause,
        facts: { path: this.#path },
      });
    }
  }
}

async function endsInLine(file: FileHandle, sizeBytes: number): Promise<boolean> {
  if (sizeBytes === 0) return true;
  const { buffer } = await file.read({ buffer: Buffer.alloc(1), position: sizeBytes - 1 });
  return buffer[0] === NEWLINE;
}
