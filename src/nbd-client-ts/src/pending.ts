import type { AbortHub } from "./abort-hub.js";
import { abortError, NbdError } from "./errors.js";
import { describeRange, requestFailed } from "./receiver.js";
import type { ReplyReceiver } from "./reply-parser.js";
import type { Request } from "./request.js";

/** What a session needs to know of a request beside its header. */
export interface Submission {
  readonly request: Request;
  readonly receiver: ReplyReceiver;
  /** Data of a WRITE. Not copied: it must stay as it is until the promise settles. */
  readonly payload?: Uint8Array | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A request from its submission until its caller has an answer, and its reply has come. */
export class Pending {
  readonly submission: Submission;
  /** On the monotonic clock, set when the request is sent. */
  sentAtMs = 0;
  #resolve: (() => void) | undefined;
  #reject: ((error: NbdError) => void) | undefined;
  readonly #aborts: AbortHub;
  readonly #aborted: (pending: Pending) => void;

  /** `aborted` is called after the promise has been rejected because of the signal. */
  constructor(submission: Submission, aborts: AbortHub, aborted: (pending: Pending) => void) {
    this.submission = submission;
    this.#aborts = aborts;
    this.#aborted = aborted;
  }

  start(): Promise<void> {
    const { signal } = this.submission;
    if (signal !== undefined) this.#aborts.add(signal, this);
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  /** The signal aborted. */
  abort(): void {
    const { signal, receiver } = this.submission;
    receiver.abandoned = true;
    if (signal !== undefined) this.#settle(abortError(signal, describeRange(receiver.range)));
    this.#aborted(this);
  }

  /** The reply has come completely. */
  answered(): void {
    const { error, range } = this.submission.receiver;
    this.#settle(error === undefined ? undefined : requestFailed(range, error));
  }

  /** The connection died; `first` is why. */
  connectionDied(first: NbdError): void {
    const { range } = this.submission.receiver;
    this.submission.receiver.abandoned = true;
    const message = `${describeRange(range)} got no answer, the connection is dead: ${first.message}`;
    this.#settle(new NbdError(first.code, message, { ...range, cause: first }));
  }

  /** The first to settle wins: an aborted request is settled long before its reply comes. */
  #settle(error: NbdError | undefined): void {
    const { signal } = this.submission;
    if (signal !== undefined) this.#aborts.remove(signal, this);
    const [resolve, reject] = [this.#resolve, this.#reject];
    this.#resolve = this.#reject = undefined;
    if (error === undefined) resolve?.();
    else reject?.(error);
  }
}
