import type { BitmapAdd, BitmapMerge, BitmapRef } from "./bitmaps.js";
import type { BlockBackendInfo, BlockGraph, BlockNodeInfo, BlockStats } from "./block-info.js";
import type { BlockExportAdd, BlockExportDel, BlockExportInfo, NbdServerStart } from "./exports.js";
import type {
  BlockCommit,
  BlockdevBackup,
  BlockdevCreate,
  BlockJobInfo,
  BlockStream,
  JobInfo,
  SnapshotJob,
} from "./jobs.js";
import type {
  CpuInfo,
  IothreadInfo,
  JsonValue,
  MachineStatus,
  MemorySize,
  MigrationCapability,
  MigrationInfo,
  QomMember,
  QomProperty,
  SchemaEntity,
} from "./machine.js";
import type { BlockdevOptions } from "./nodes.js";
import type { BlockdevSnapshot, TransactionAction } from "./transaction.js";

/** `undefined` in `A` means that the arguments may be left out. */
interface Command<A, R> {
  arguments: A;
  returns: R;
}

/** What commands without a result answer. */
type Nothing = Readonly<Record<string, never>>;

/**
 * The commands that can be sent: no others can. Types follow QEMU 7.2; a test compares them with `query-qmp-schema`.
 * Replies are not checked member by member. A number beyond 2^53 arrives rounded and so fails `Number.isSafeInteger`.
 * "machine only" marks what `qemu-storage-daemon` does not know and answers with class CommandNotFound.
 */
export interface QmpCommands {
  qmp_capabilities: Command<{ enable?: "oob"[] } | undefined, Nothing>;
  "query-version": Command<
    undefined,
    { qemu: { major: number; minor: number; micro: number }; package: string }
  >;
  "query-commands": Command<undefined, { name: string }[]>;
  "query-qmp-schema": Command<undefined, SchemaEntity[]>;
  quit: Command<undefined, Nothing>;

  /** Machine only, down to human-monitor-command. */
  "query-status": Command<undefined, MachineStatus>;
  "query-name": Command<undefined, { name?: string }>;
  "query-uuid": Command<undefined, { UUID: string }>;
  "query-migrate": Command<undefined, MigrationInfo>;
  "query-migrate-capabilities": Command<undefined, { capability: string; state: boolean }[]>;
  "query-migrate-parameters": Command<undefined, { "max-bandwidth"?: number }>;
  "migrate-set-capabilities": Command<
    { capabilities: { capability: MigrationCapability; state: boolean }[] },
    Nothing
  >;
  /** Bytes per second. */
  "migrate-set-parameters": Command<{ "max-bandwidth"?: number }, Nothing>;
  /** Returns when it has begun. */
  migrate: Command<{ uri: string }, Nothing>;
  migrate_cancel: Command<undefined, Nothing>;
  "query-iothreads": Command<undefined, IothreadInfo[]>;
  "query-cpus-fast": Command<undefined, CpuInfo[]>;
  "query-memory-size-summary": Command<undefined, MemorySize>;
  /** Loads a memory image; QEMU ends if it cannot. */
  "migrate-incoming": Command<{ uri: string }, Nothing>;
  stop: Command<undefined, Nothing>;
  cont: Command<undefined, Nothing>;
  system_powerdown: Command<undefined, Nothing>;
  "human-monitor-command": Command<{ "command-line": string; "cpu-index"?: number }, string>;

  "qom-list": Command<{ path: string }, QomMember[]>;
  "qom-get": Command<QomProperty, unknown>;
  "qom-set": Command<QomProperty & { value: JsonValue }, Nothing>;

  "query-block": Command<undefined, BlockBackendInfo[]>;
  "query-named-block-nodes": Command<{ flat?: boolean } | undefined, BlockNodeInfo[]>;
  "query-blockstats": Command<{ "query-nodes"?: boolean } | undefined, BlockStats[]>;
  "x-debug-query-block-graph": Command<undefined, BlockGraph>;
  /** `data` is the secret, in base64. */
  "object-add": Command<{ "qom-type": "secret"; id: string; format: "base64"; data: string }, Nothing>;
  "blockdev-add": Command<BlockdevOptions, Nothing>;
  "blockdev-del": Command<{ "node-name": string }, Nothing>;
  /** `null`: to the main loop. Not for a node that a device uses. */
  "x-blockdev-set-iothread": Command<{ "node-name": string; iothread: string | null }, Nothing>;
  /** What is left out becomes the default again. */
  "blockdev-reopen": Command<{ options: BlockdevOptions[] }, Nothing>;
  /** From 10.0 on; without a node it is for all of them. */
  "blockdev-set-active": Command<{ "node-name"?: string; active: boolean }, Nothing>;
  "blockdev-snapshot": Command<BlockdevSnapshot, Nothing>;
  transaction: Command<
    { actions: TransactionAction[]; properties?: { "completion-mode"?: "individual" | "grouped" } },
    Nothing
  >;

  "block-dirty-bitmap-add": Command<BitmapAdd, Nothing>;
  "block-dirty-bitmap-remove": Command<BitmapRef, Nothing>;
  "block-dirty-bitmap-enable": Command<BitmapRef, Nothing>;
  "block-dirty-bitmap-disable": Command<BitmapRef, Nothing>;
  "block-dirty-bitmap-merge": Command<BitmapMerge, Nothing>;
  "block-dirty-bitmap-clear": Command<BitmapRef, Nothing>;

  "nbd-server-start": Command<NbdServerStart, Nothing>;
  /** Blocks QEMU's main loop while a client is connected that has not finished its handshake (seen on 7.2). */
  "nbd-server-stop": Command<undefined, Nothing>;
  "query-block-exports": Command<undefined, BlockExportInfo[]>;
  "block-export-add": Command<BlockExportAdd, Nothing>;
  /** Returns at once; the export is gone with the event BLOCK_EXPORT_DELETED. */
  "block-export-del": Command<BlockExportDel, Nothing>;

  "query-jobs": Command<undefined, JobInfo[]>;
  "query-block-jobs": Command<undefined, BlockJobInfo[]>;
  "blockdev-backup": Command<BlockdevBackup, Nothing>;
  "blockdev-create": Command<BlockdevCreate, Nothing>;
  /** Bytes per second; 0 means without limit. */
  "block-job-set-speed": Command<{ device: string; speed: number }, Nothing>;
  "block-stream": Command<BlockStream, Nothing>;
  "block-commit": Command<BlockCommit, Nothing>;
  "job-cancel": Command<{ id: string }, Nothing>;
  "job-complete": Command<{ id: string }, Nothing>;
  "job-finalize": Command<{ id: string }, Nothing>;
  "job-dismiss": Command<{ id: string }, Nothing>;
  /** Machine only, down to snapshot-delete. They are jobs: whether they succeed, the job tells. */
  "snapshot-save": Command<SnapshotJob & { vmstate: string }, Nothing>;
  "snapshot-load": Command<SnapshotJob & { vmstate: string }, Nothing>;
  "snapshot-delete": Command<SnapshotJob, Nothing>;
  /** Ends the connection of an NBD node: its requests in flight fail. Machine only. */
  yank: Command<{ instances: { type: "block-node"; "node-name": string }[] }, Nothing>;
}

export type QmpCommandName = keyof QmpCommands;
export type QmpArguments<C extends QmpCommandName> = QmpCommands[C]["arguments"];
export type QmpReturns<C extends QmpCommandName> = QmpCommands[C]["returns"];
