/** Typed QMP sessions with QEMU and qemu-storage-daemon. Start at `connectQmp`. */
export { connectQmp, type QmpConnectOptions } from "./connect.js";
export {
  QmpSession,
  type ExecuteOptions,
  type ExecuteParameters,
  type JobArguments,
  type QmpJobCommand,
} from "./session.js";
export type { FollowJobOptions } from "./job.js";
export { isQmpError, QmpError, qmpErrorCodes, type QmpErrorCode, type QmpErrorFacts } from "./errors.js";
export { LineFramer } from "./line-framer.js";
export { isVersionAtLeast, type QmpVersion } from "./version.js";
export type { ConnectionHooks, QmpWarning } from "./connection.js";
export type { QmpRunState } from "./run-state.js";
export type { WaitLimits } from "./wait.js";
export type * from "./schema/commands.js";
export { isEvent, type QmpEvent, type QmpEventOf, type QmpEvents } from "./schema/events.js";
export type * from "./schema/bitmaps.js";
export type * from "./schema/block-info.js";
export type * from "./schema/exports.js";
export type * from "./schema/jobs.js";
export type * from "./schema/machine.js";
export type * from "./schema/nodes.js";
export type * from "./schema/transaction.js";
