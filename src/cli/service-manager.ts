import { execFile } from "node:child_process";
import { promisify } from "node:util";
import type { Logger } from "pino";
import type { ServiceContext } from "../agent.js";
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

  /**
   * Says that the agent lives, three times in the time that systemd's watchdog gives it (WatchdogSec in the unit), until it is
   * disposed of. Does nothing where there is no watchdog, or one of another process.
   */
  keepAlive(clock: ServiceContext["clock"]): AsyncDisposable {
    const stop = new AbortController();
    const kept = this.#keepAlive(clock, stop.signal);
    return {
      async [Symbol.asyncDispose]() {
        stop.abort();
        await kept;
      },
    };
  }

  async #keepAlive(clock: ServiceContext["clock"], stop: AbortSignal): Promise<void> {
    const { WATCHDOG_USEC: limitMicros, WATCHDOG_PID: pid = String(process.pid) } = this.#env;
    const limitMs = Number(limitMicros) / 1000;
    if (!(limitMs > 0) || pid !== String(process.pid)) return;
    while (!stop.aborted) {
      await this.#notify("WATCHDOG=1");
      // Only the signal ends a sleep early.
      await clock.sleep(limitMs / 3, stop).catch(() => undefined);
    }
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
