export type JsonValue = string | number | boolean | null | JsonValue[] | { [member: string]: JsonValue };

export type MachineRunState =
  | "debug"
  | "inmigrate"
  | "internal-error"
  | "io-error"
  | "paused"
  | "postmigrate"
  | "prelaunch"
  | "finish-migrate"
  | "restore-vm"
  | "running"
  | "save-vm"
  | "shutdown"
  | "suspended"
  | "watchdog"
  | "guest-panicked"
  | "colo";

export interface MachineStatus {
  running: boolean;
  status: MachineRunState;
}

export interface MigrationInfo {
  /** Absent if there has been no migration yet. */
  status?: string;
  ram?: { transferred: number; remaining: number; total: number };
  "total-time"?: number;
  downtime?: number;
  "error-desc"?: string;
  "blocked-reasons"?: string[];
}

/** Those that somebody here sets; QEMU has more. */
export type MigrationCapability =
  | "events"
  | "xbzrle"
  | "rdma-pin-all"
  | "compress"
  | "postcopy-ram"
  | "x-colo"
  | "release-ram"
  | "block"
  | "return-path"
  | "pause-before-switchover"
  | "multifd"
  | "dirty-bitmaps"
  | "x-ignore-shared"
  | "background-snapshot"
  | "zero-copy-send"
  | "postcopy-preempt"
  | "switchover-ack"
  | "mapped-ram";

export interface CpuInfo {
  "cpu-index": number;
  "qom-path": string;
  "thread-id": number;
}

/** Bytes. */
export interface MemorySize {
  "base-memory": number;
  "plugged-memory"?: number;
}

export interface IothreadInfo {
  id: string;
  "thread-id": number;
  "poll-max-ns": number;
  "poll-grow": number;
  "poll-shrink": number;
}

export interface QomProperty {
  path: string;
  property: string;
}

export interface QomMember {
  name: string;
  /** `child<…>` and `link<…>` lead to other objects. */
  type: string;
  description?: string;
  "default-value"?: unknown;
}

/** One entity of QEMU's self-description: names other than those of commands and events are meaningless numbers. */
export interface SchemaEntity {
  readonly name: string;
  readonly "meta-type": "builtin" | "enum" | "array" | "object" | "alternate" | "command" | "event";
  readonly [member: string]: unknown;
}
