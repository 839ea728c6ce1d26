import type { QmpConnection } from "./connection.js";
import { QmpError } from "./errors.js";
import { followJob, type FollowJobOptions } from "./job.js";
import type { QmpArguments, QmpCommandName, QmpReturns } from "./schema/commands.js";
import type { QmpEvent } from "./schema/events.js";
import type { JobInfo } from "./schema/jobs.js";
import type { QmpVersion } from "./version.js";
import { abortedError, limitWait, type WaitLimits } from "./wait.js";

export interface ExecuteOptions {
  /** Stops waiting with QMP_ABORTED; QEMU still carries the command out. */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds until QMP_TIMEOUT; default: the session's `commandTimeoutMs`. */
  readonly timeoutMs?: number | undefined;
}

/** Arguments are required where QEMU requires any. */
export type ExecuteParameters<C extends QmpCommandName> =
  undefined extends QmpArguments<C>
    ? [args?: QmpArguments<C>, options?: ExecuteOptions]
    : [args: QmpArguments<C>, options?: ExecuteOptions];

/** Commands that start a job. */
export type QmpJobCommand = "blockdev-backup" | "blockdev-create" | "block-stream";

/** The id is the caller's, so that it can find the job again; finalizing and dismissing is up to `runJob`. */
export type JobArguments<C extends QmpJobCommand> = Omit<
  QmpArguments<C>,
  "job-id" | "auto-finalize" | "auto-dismiss"
> & { "job-id": string };

/**
 * A negotiated QMP session with a QEMU or a qemu-storage-daemon. Made by `connectQmp`. Any number of calls may be in
 * flight; QEMU carries them out one after the other.
 */
export class QmpSession implements AsyncDisposable {
  readonly version: QmpVersion;
  /** Resolves with the first cause once the session has ended: QMP_CLOSED after `close`. Never rejects. */
  readonly closed: Promise<QmpError>;
  readonly #connection: QmpConnection;
  #commandTimeoutMs: number;

  constructor(connection: QmpConnection, version: QmpVersion, commandTimeoutMs: number) {
    this.#connection = connection;
    this.version = version;
    this.closed = connection.closed;
    this.#commandTimeoutMs = commandTimeoutMs;
  }

  /**
   * Sends one command. Rejects with QMP_COMMAND_FAILED (QEMU's class and text as fields), QMP_TIMEOUT, QMP_ABORTED,
   * QMP_ARGUMENT, or the cause of the session's end.
   */
  async execute<C extends QmpCommandName>(
    command: C,
    ...parameters: ExecuteParameters<C>
  ): Promise<QmpReturns<C>> {
    const [args, options] = parameters as readonly [object?, ExecuteOptions?];
    // Here, and only here, QEMU is trusted to answer in the shape that the table promises.
    const reply: unknown = await this.#connection.request(command, args, {
      signal: options?.signal,
      timeoutMs: options?.timeoutMs ?? this.#commandTimeoutMs,
    });
    return reply;
  }

  /** Runs `action`, with another deadline for the commands that it sends and that have none of their own. */
  async withDeadline<T>(commandTimeoutMs: number, action: () => Promise<T>): Promise<T> {
    const before = this.#commandTimeoutMs;
    this.#commandTimeoutMs = commandTimeoutMs;
    try {
      return await action();
    } finally {
      this.#commandTimeoutMs = before;
    }
  }

  /** Calls the listener for each event from now on; returns how to stop. What it throws goes to `onWarning`. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    return this.#connection.onEvent(listener);
  }

  /**
   * Waits for an event that comes from now on, so call it before what causes the event. Rejects with QMP_TIMEOUT,
   * QMP_ABORTED or the cause of the session's end. Give at least one limit.
   */
  async waitForEvent<E extends QmpEvent>(
    predicate: (event: QmpEvent) => event is E,
    limits: WaitLimits,
  ): Promise<E>;
  async waitForEvent(predicate: (event: QmpEvent) => boolean, limits: WaitLimits): Promise<QmpEvent>;
  async waitForEvent(predicate: (event: QmpEvent) => boolean, limits: WaitLimits): Promise<QmpEvent> {
    let stop: (() => void) | undefined;
    const found = new Promise<QmpEvent>((resolve, reject) => {
      stop = this.onEvent((event) => {
        if (predicate(event)) resolve(event);
      });
      void this.closed.then((cause) =>
        reject(new QmpError(cause.code, `The awaited event cannot come: ${cause.message}`, { cause })),
      );
    });
    try {
      return await limitWait(found, limits, "The awaited event");
    } finally {
      stop?.();
    }
  }

  /**
   * Starts a job and follows it to its end, as `followJob` does. The signal cancels the job. If starting it fails with
   * QMP_TIMEOUT, it may exist all the same: look for its id with `query-jobs`.
   */
  async runJob<C extends QmpJobCommand>(
    command: C,
    args: JobArguments<C>,
    options: FollowJobOptions = {},
  ): Promise<JobInfo> {
    const jobId = args["job-id"];
    if (options.signal?.aborted === true) throw abortedError(options.signal, `Job ${jobId}`);
    // A block job would dismiss itself, and its error with it; blockdev-create never does and takes no such members.
    const hold = command === "blockdev-create" ? {} : { "auto-finalize": true, "auto-dismiss": false };
    // No signal here: once sent, the job exists, and somebody must see it to its end.
    await this.#connection.request(command, { ...args, ...hold }, { timeoutMs: this.#commandTimeoutMs });
    return await this.followJob(jobId, options);
  }

  /** Follows a job found with `query-jobs` to its end and dismisses it; for jobs with `auto-dismiss` off. */
  async followJob(jobId: string, options: FollowJobOptions = {}): Promise<JobInfo> {
    return await followJob(this, jobId, options);
  }

  /** Ends the session; QEMU goes on. Pending calls fail with QMP_CLOSED. Idempotent. */
  async close(): Promise<void> {
    this.#connection.fail(new QmpError("QMP_CLOSED", "The session was closed"));
    await this.closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
