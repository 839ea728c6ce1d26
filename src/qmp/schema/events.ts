import type { JobStatus, JobType } from "./jobs.js";

/** An event as it came. Narrow it with `isEvent`: QEMU sends more kinds than are listed here. */
export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
  /** Host time. */
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
}

interface BlockJobEnd {
  type: JobType;
  /** The job's id. */
  device: string;
  len: number;
  offset: number;
  speed: number;
}

/** The events that somebody here waits for. */
export interface QmpEvents {
  JOB_STATUS_CHANGE: { id: string; status: JobStatus };
  BLOCK_JOB_COMPLETED: BlockJobEnd & { error?: string };
  BLOCK_JOB_CANCELLED: BlockJobEnd;
  BLOCK_JOB_READY: BlockJobEnd;
  BLOCK_JOB_PENDING: { type: JobType; id: string };
  BLOCK_JOB_ERROR: { device: string; operation: "read" | "write"; action: "ignore" | "report" | "stop" };
  BLOCK_IO_ERROR: {
    device: string;
    "node-name"?: string;
    operation: "read" | "write";
    action: "ignore" | "report" | "stop";
    nospace?: boolean;
    reason: string;
  };
  BLOCK_EXPORT_DELETED: { id: string };
  DEVICE_DELETED: { device?: string; path: string };
  SHUTDOWN: { guest: boolean; reason: string };
  RESET: { guest: boolean; reason: string };
  /** Only with the capability `events`. */
  MIGRATION: { status: string };
  STOP: Readonly<Record<string, never>>;
  RESUME: Readonly<Record<string, never>>;
}

export type QmpEventOf<E extends keyof QmpEvents> = QmpEvent & {
  readonly event: E;
  readonly data: QmpEvents[E];
};

/** Tells whether an event is of a kind, and gives its data that kind's type. */
export function isEvent<E extends keyof QmpEvents>(event: QmpEvent, kind: E): event is QmpEventOf<E> {
  return event.event === kind;
}
