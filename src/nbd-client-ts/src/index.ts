export { connectNbd, listExports } from "./connect.js";
export { NbdConnection } from "./connection.js";
export {
  NBD_ERROR_CODES,
  NbdError,
  type NbdErrno,
  type NbdErrorCode,
  type NbdErrorDetails,
  type NbdErrorScope,
} from "./errors.js";
export type { MappedExtent } from "./extents.js";
export type { BlockSize } from "./option-go.js";
export type {
  BlockStatusOptions,
  ExtentsOptions,
  NbdConnectOptions,
  NbdServerOptions,
  ReadOptions,
  RequestOptions,
  WriteOptions,
  WriteZeroesOptions,
} from "./options.js";
export type { ListedExport } from "./option-list.js";
export type { Extent } from "./status-collector.js";
