/**
 * Every code a QmpError may carry, with what the caller may do next. The session is over after the codes marked
 * "session ended"; after all others it goes on.
 */
export const qmpErrorCodes = {
  QMP_ARGUMENT: "An argument cannot be sent as it is (path too long, unsafe number): a bug in the caller",
  QMP_SOCKET_ABSENT: "No such socket: the domain is probably inactive",
  QMP_REFUSED: "Nothing listens on the socket: QEMU has died and left it behind",
  QMP_PERMISSION: "This user may not open the socket",
  QMP_CONNECT_FAILED: "Connecting failed in another way; the cause is the system's error",
  QMP_NO_GREETING:
    "Connected or queued, but not greeted: probably another client holds the monitor; try later",
  QMP_NOT_QMP: "What answers is not a QMP server, or one in pretty-printing mode",
  QMP_PROTOCOL: "The peer broke the protocol (session ended)",
  QMP_LINE_TOO_LONG: "A message exceeded the limit (session ended)",
  QMP_DISCONNECTED: "The peer closed the connection, for example because QEMU ended (session ended)",
  QMP_CLOSED: "This side closed the session (session ended)",
  QMP_TIMEOUT: "No answer in time; the command may still take effect",
  QMP_ABORTED: "The caller's signal fired; a command already sent may still take effect",
  QMP_COMMAND_FAILED: "QEMU refused the command; see qmpClass and qemuText",
  QMP_JOB_FAILED: "The job ended with an error; see qemuText",
  QMP_JOB_LOST: "The job vanished before its result could be read: somebody else dismissed it",
} as const;

export type QmpErrorCode = keyof typeof qmpErrorCodes;

/** What is known about a failure, beyond its text. */
export interface QmpErrorFacts {
  readonly cause?: unknown;
  readonly socketPath?: string;
  readonly command?: string;
  /** QEMU's error class: GenericError, CommandNotFound, DeviceNotFound, DeviceNotActive, KVMMissingCap. */
  readonly qmpClass?: string;
  /** QEMU's own words, unchanged. */
  readonly qemuText?: string;
  readonly jobId?: string;
}

/** The one error class of this folder; `code` tells what to do next (see `qmpErrorCodes`). */
export class QmpError extends Error {
  readonly code: QmpErrorCode;
  readonly socketPath: string | undefined;
  readonly command: string | undefined;
  readonly qmpClass: string | undefined;
  readonly qemuText: string | undefined;
  readonly jobId: string | undefined;

  constructor(code: QmpErrorCode, message: string, facts: QmpErrorFacts = {}) {
    super(message, "cause" in facts ? { cause: facts.cause } : undefined);
    this.name = "QmpError";
    this.code = code;
    this.socketPath = facts.socketPath;
    this.command = facts.command;
    this.qmpClass = facts.qmpClass;
    this.qemuText = facts.qemuText;
    this.jobId = facts.jobId;
  }
}

/** Tells a QmpError, of one of the given codes if there are any, from everything else that may be thrown. */
export function isQmpError(error: unknown, ...codes: readonly QmpErrorCode[]): error is QmpError {
  return error instanceof QmpError && (codes.length === 0 || codes.includes(error.code));
}
