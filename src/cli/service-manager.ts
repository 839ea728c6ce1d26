import { execFile } from "node:child_process";
import { promisify } from "node:util";
import type { Logger } from "pino";
import { errorMessage } from "../shared/errors.js";

const execFileAsync = promisify(execFile);

/** systemd may be slow to read what it is told; nothing of ours waits longer for it. */
const NOTIFY_MS = 10_000;

/**
 * Tells systemd how the agent does (sd_notify(3)), if it was started by it with Type=notify. Node has no datagram sockets
 * of Unix, so systemd's own program sends the words; it ends only when they have been read, so that systemd
 * still knows whose they are. Needs NotifyAccess=all.
 */
export class ServiceManager {
  readonly #env: Readonly<Record<string, string | undefined>>;
  readonly #log: Logger;

  constructor(env: Readonly<Record<string, string | undefined>>, log: Logger) {
    this.#env = env;
    this.#log = log;
  }

  ready(status: string): Promise<void> {
    return this.#notify("READY=1", `STATUS=${status}`);
  }

  reloading(): Promise<void> {
    return this.#notify("RELOADING=1", "STATUS=Reads its configuration again");
  }

  stopping(): Promise<void> {
    return this.#notify("STOPPING=1", "STATUS=Waits for calls that run");
  }

  /** Never fails: an agent that nobody hears works all the same. */
  async #notify(...words: readonly string[]): Promise<void> {
    if ((this.#env["NOTIFY_SOCKET"] ?? "") === "") return;
    try {
      await execFileAsync("systemd-notify", words, { env: { ...this.#env }, timeout: NOTIFY_MS });
    } catch (error) {
      this.#log.warn({ words }, `Cannot tell systemd: ${errorMessage(error)}`);
    }
  }
}
