import { isQmpError, QmpError } from "./errors.js";
import type { JobInfo } from "./schema/jobs.js";
import { isEvent, type QmpEvent } from "./schema/events.js";
import type { QmpSession } from "./session.js";
import { abortedError } from "./wait.js";

export interface FollowJobOptions {
  /** Cancels the job; it is still followed to its end. */
  readonly signal?: AbortSignal | undefined;
  /** Called with each look at the job, the last one included. */
  readonly onProgress?: ((job: JobInfo) => void) | undefined;
  /** Milliseconds until a cancelled job that does not end is left to itself, with QMP_TIMEOUT; default 30,000. */
  readonly cancelTimeoutMs?: number | undefined;
  /** Milliseconds between looks when no event comes; default 1000. Only progress depends on it. */
  readonly pollIntervalMs?: number | undefined;
}

type Monitor = Pick<QmpSession, "execute" | "onEvent" | "closed">;

/** Wakes a loop on news; news that comes while the loop is busy is kept for its next wait. */
class Bell {
  #rung = false;
  #wake: (() => void) | undefined;

  readonly ring = (): void => {
    this.#rung = true;
    this.#wake?.();
  };

  async wait(timeoutMs: number): Promise<void> {
    if (!this.#rung) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timeoutMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#wake = undefined;
    this.#rung = false;
  }
}

async function findJob(monitor: Monitor, jobId: string): Promise<JobInfo> {
  const job = (await monitor.execute("query-jobs")).find(({ id }) => id === jobId);
  if (job === undefined) throw new QmpError("QMP_JOB_LOST", `Job ${jobId} no longer exists`, { jobId });
  return job;
}

/** The job may just have ended, or be at a point where QEMU refuses: its state, looked at next, is what counts. */
async function unlessRefused(command: Promise<unknown>): Promise<void> {
  try {
    await command;
  } catch (error) {
    if (!isQmpError(error, "QMP_COMMAND_FAILED")) throw error;
  }
}

/** Refused for a job that is gone. One that stays would be in the way of everything that follows, so it is tried twice. */
async function dismiss(monitor: Monitor, id: string): Promise<void> {
  try {
    await monitor.execute("job-dismiss", { id });
  } catch (error) {
    if (!isQmpError(error, "QMP_COMMAND_FAILED")) throw error;
    const isThere = (await monitor.execute("query-jobs")).some((job) => job.id === id);
    if (isThere) await monitor.execute("job-dismiss", { id });
  }
}

async function followToConclusion(
  monitor: Monitor,
  jobId: string,
  options: FollowJobOptions,
  bell: Bell,
): Promise<JobInfo> {
  let cancelledAtMs: number | undefined;
  for (;;) {
    if (options.signal?.aborted === true && cancelledAtMs === undefined) {
      cancelledAtMs = performance.now();
      await unlessRefused(monitor.execute("job-cancel", { id: jobId }));
    }
    const job = await findJob(monitor, jobId);
    options.onProgress?.(job);
    if (job.status === "concluded") return job;
    const limitMs = options.cancelTimeoutMs ?? 30_000;
    if (cancelledAtMs !== undefined && performance.now() - cancelledAtMs > limitMs) {
      const message = `Job ${jobId} (${job.type}) did not end within ${limitMs / 1000} s of being cancelled`;
      throw new QmpError("QMP_TIMEOUT", message, { jobId });
    }
    await bell.wait(options.pollIntervalMs ?? 1000);
  }
}

/**
 * Follows a job that does not dismiss itself to its end and dismisses it. Resolves with its last state if it succeeded,
 * even if the signal fired meanwhile. Rejects with QMP_JOB_FAILED (QEMU's text in `qemuText`), QMP_ABORTED if the
 * signal fired and the job did not succeed, QMP_JOB_LOST, or what ended the session; the last two, and a timeout of a
 * command or of the cancellation, leave the job's fate open. A job that QEMU has paused is waited for, however long: the
 * signal is the limit.
 */
export async function followJob(
  monitor: Monitor,
  jobId: string,
  options: FollowJobOptions,
): Promise<JobInfo> {
  const bell = new Bell();
  const onEvent = (event: QmpEvent): void => {
    if (isEvent(event, "JOB_STATUS_CHANGE") && event.data.id === jobId) bell.ring();
  };
  const stopListening = monitor.onEvent(onEvent);
  options.signal?.addEventListener("abort", bell.ring);
  void monitor.closed.then(bell.ring);
  try {
    const job = await followToConclusion(monitor, jobId, options, bell);
    await dismiss(monitor, jobId);
    if (job.error === undefined) return job;
    throw jobError(job, job.error, options.signal);
  } finally {
    stopListening();
    options.signal?.removeEventListener("abort", bell.ring);
  }
}

function jobError(job: JobInfo, qemuText: string, signal: AbortSignal | undefined): QmpError {
  const facts = { jobId: job.id, qemuText };
  if (signal?.aborted === true) return abortedError(signal, `Job ${job.id}`, facts);
  return new QmpError("QMP_JOB_FAILED", `Job ${job.id} (${job.type}) failed: ${qemuText}`, facts);
}
