/**
 * Every error that leaves this program has a code from this table. The category decides the exit code of the command
 * line (and the gRPC status of the API); the sentence is the documentation, and a test keeps src/README.md equal to it.
 */
export const ERROR_CODES = {
  INVALID_ARGUMENT: ["usage", "An option or argument has a value that cannot be used"],
  XML_INVALID: ["usage", "An XML document is not well-formed, or has something else than its form allows"],
  INVALID_NAME: ["usage", "A name has characters or a length that names of its kind may not have"],
  REQUEST_ID_REUSED: ["usage", "A request has the id of another one that was not the same"],
  CONFIG_INVALID: ["usage", "The configuration has an unknown key, a wrong type or a contradiction"],
  TOO_LARGE: ["usage", "A call has more metadata than the agent takes"],
  TLS_INVALID: ["usage", "Certificate, key and authority cannot be used, or do not fit together"],
  CONFIG_NOT_FOUND: ["usage", "The configuration file does not exist or cannot be read"],
  DOMAIN_NOT_FOUND: ["not-found", "The configuration has no domain of that name"],
  DISK_NOT_FOUND: ["not-found", "The domain or backup has no disk with that target"],
  CHECKPOINT_NOT_FOUND: ["not-found", "No disk of the domain has a checkpoint of that name"],
  BACKUP_NOT_FOUND: ["not-found", "No configured repository holds a backup with that id"],
  REPOSITORY_NOT_FOUND: ["not-found", "The configuration has no repository of that name"],
  SNAPSHOT_NOT_FOUND: ["not-found", "The domain has no block snapshot of that name"],
  DOMAIN_SNAPSHOT_NOT_FOUND: ["not-found", "The domain has no domain snapshot of that name"],
  JOB_NOT_FOUND: ["not-found", "The configuration has no job of that name"],
  RUN_NOT_FOUND: ["not-found", "The job has no run under way in this process"],
  EXPORT_NOT_FOUND: ["not-found", "The block snapshot has no such export"],
  ALREADY_EXISTS: ["conflict", "Something of that name is there already"],
  DOMAIN_BUSY: ["conflict", "Another operation holds the domain; the message says which"],
  REPOSITORY_BUSY: [
    "conflict",
    "Another process writes to the domain's part of the repository, or reads the backup that is to be changed",
  ],
  DISK_IN_USE: ["conflict", "Another program holds the disk's image file"],
  DISK_CHANGED: ["conflict", "The image of an inactive domain was written to during the operation"],
  CHECKPOINT_BUSY: ["conflict", "The checkpoint is in use by an export or a job"],
  NBD_SERVER_BUSY: ["conflict", "The domain's QEMU already runs an NBD server that is not ours"],
  BACKUP_HAS_CHILDREN: ["conflict", "Other backups are based on this one"],
  DOMAIN_SNAPSHOT_IN_USE: [
    "conflict",
    "Clones or other domains need what would be removed; the message names them",
  ],
  FORCE_NEEDED: [
    "conflict",
    "A revert would lose something; the message says what, and `--force` accepts it",
  ],
  BACKUP_PROTECTED: ["conflict", "The backup is protected: it must stay until somebody unprotects it"],
  FOREIGN_FILTER: ["conflict", "Another tool's filter or job works on the disk"],
  JOB_BUSY: ["conflict", "The job runs already"],
  AGENT_RUNNING: ["conflict", "An agent runs already on the same state directory or socket"],
  TOO_MANY_CALLS: ["conflict", "The agent, or this client, has as many calls under way as it may have"],
  AGENT_UNREACHABLE: [
    "unreachable",
    "No agent answers on its socket or address, or it refuses the connection",
  ],
  DOMAIN_UNREACHABLE: ["unreachable", "The domain's QMP socket is absent, refuses, hangs or talks nonsense"],
  DAMAGED: ["damage", "The files of a backup or domain snapshot are not what its record and digests say"],
  BOOT_FAILED: [
    "failed",
    "A machine on the disks of a backup did not come up; the message has its last words",
  ],
  NOT_READY: ["failed", "The next backup would be refused; the report says why"],
  CHECKPOINT_INVALID: ["failed", "The changes since that checkpoint cannot be told completely"],
  CHECKPOINT_DAMAGED: ["failed", "A bitmap is inconsistent, so that merging it would lose changes"],
  UNSUPPORTED: ["failed", "The QEMU version or the disk cannot do what is needed"],
  SNAPSHOT_BROKEN: ["failed", "The block snapshot lost content that it should have preserved"],
  MEMORY_SAVE_FAILED: ["failed", "The domain's memory could not be saved; the guest goes on as before"],
  MEMORY_LOAD_FAILED: [
    "failed",
    "QEMU could not load the saved memory; the domain is as it was before the revert, or else the message says what has become of it",
  ],
  QUIESCE_FAILED: ["failed", "The guest's file systems could not be frozen, or are not known to be thawed"],
  NO_SPACE: ["failed", "A file system or device that is written to is full"],
  ACCESS_DENIED: ["failed", "The client's role does not allow the call, or something is another client's"],
  CLIENT_UNKNOWN: ["failed", "The client's certificate has no entry in the agent's configuration"],
  AUDIT_FAILED: ["failed", "The audit log cannot be written, so the agent changes nothing"],
  PERMISSION_DENIED: ["failed", "A file or directory may not be read or written by this user"],
  PATH_NOT_FOUND: ["failed", "A file or directory that must exist does not"],
  KEY_UNAVAILABLE: ["failed", "The key of an encrypted repository cannot be had, or is none"],
  KEY_WRONG: ["failed", "A backup is encrypted with another key than that of its repository"],
  QEMU_FAILED: ["failed", "QEMU refused a command or a QEMU tool failed; the message has its words"],
  LVM_FAILED: ["failed", "A program of LVM failed; the message has its words"],
  TOOL_MISSING: ["failed", "A program of the QEMU package, or of lvm2, is not installed"],
  NBD_FAILED: ["failed", "Reading or writing over NBD failed"],
  CLEANUP_INCOMPLETE: ["failed", "Something could not be removed; the next command tries again"],
  JOB_FAILED: ["failed", "A run of a job left a domain without its backup; its record says why"],
  HOOK_FAILED: [
    "failed",
    "A program that a job runs before a backup has failed, so the backup was not taken",
  ],
  WINDOW_ENDED: ["failed", "The time came after which a run of the job may not go on"],
  INTERRUPTED: ["failed", "The operation was cancelled, and everything it had made was removed"],
  INTERNAL: ["failed", "A defect of this program"],
} as const satisfies Record<string, readonly [ErrorCategory, string]>;

export type ErrorCategory = "usage" | "not-found" | "conflict" | "unreachable" | "damage" | "failed";
export type ErrorCode = keyof typeof ERROR_CODES;

export type ErrorFacts = Readonly<Record<string, string | number | boolean | readonly string[]>>;

/** An error with a stable code. `facts` are what a program would want to know without parsing the message. */
export class FleeceError extends Error {
  override readonly name = "FleeceError";
  readonly code: ErrorCode;
  readonly facts: ErrorFacts;

  constructor(code: ErrorCode, message: string, options: { cause?: unknown; facts?: ErrorFacts } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.facts = options.facts ?? {};
  }

  get category(): ErrorCategory {
    return ERROR_CODES[this.code][0];
  }
}

export function isFleeceError(error: unknown, ...codes: ErrorCode[]): error is FleeceError {
  return error instanceof FleeceError && (codes.length === 0 || codes.includes(error.code));
}

export function errorMessage(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The errno name of a Node file system error (`ENOENT`), or undefined for anything else. */
export function errnoOf(error: unknown): string | undefined {
  if (!(error instanceof Error) || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}

/** Turns a file system error about `path` into a coded one; other errors pass through. */
export function fileError(error: unknown, action: string, path: string): unknown {
  const errno = errnoOf(error);
  const code = errno === undefined ? undefined : FILE_ERRORS[errno];
  if (error instanceof FleeceError || code === undefined) return error;
  const [errorCode, words] = code;
  return new FleeceError(errorCode, `Cannot ${action} ${path}: ${words}`, { cause: error, facts: { path } });
}

const FILE_ERRORS: Readonly<Record<string, readonly [ErrorCode, string]>> = {
  ENOENT: ["PATH_NOT_FOUND", "no such file or directory"],
  ENOTDIR: ["PATH_NOT_FOUND", "a part of the path is not a directory"],
  EACCES: ["PERMISSION_DENIED", "permission denied"],
  EPERM: ["PERMISSION_DENIED", "operation not permitted"],
  EROFS: ["PERMISSION_DENIED", "the file system is read-only"],
  ENOSPC: ["NO_SPACE", "no space left on device"],
  EDQUOT: ["NO_SPACE", "disk quota exceeded"],
  EEXIST: ["ALREADY_EXISTS", "it exists already"],
  ELOOP: ["PERMISSION_DENIED", "it is a symbolic link"],
  ENAMETOOLONG: ["INVALID_NAME", "the name is too long"],
};
