export { changes, type ChangeExtent, type ChangesOptions } from "./changes.js";
export { connectNbd } from "./connect.js";
export { NbdConnection } from "./connection.js";
export { copyExport } from "./copy.js";
export { NbdCopyError, type CopyOptions, type CopyProgress, type CopySide } from "./copy-options.js";
export {
  NBD_ERROR_CODES,
  NbdError,
  type NbdErrno,
  type NbdErrorCode,
  type NbdErrorDetails,
  type NbdErrorScope,
} from "./errors.js";
export type { MappedExtent } from "./extents.js";
export { describeExport, listExports, listMetaContexts, type ExportDescription } from "./queries.js";
export { formatNbdUri, parseNbdUri, type NbdUri, type NbdUriTls } from "./uri.js";
export type { BlockSize } from "./option-go.js";
export type {
  BesideUri,
  BlockStatusOptions,
  ExtentsOptions,
  NbdConnectOptions,
  NbdExportOptions,
  NbdListContextsOptions,
  NbdPoolOptions,
  NbdServerOptions,
  NbdTlsOptions,
  ReadOptions,
  RequestOptions,
  StatusOptions,
  WriteOptions,
  WriteZeroesOptions,
} from "./options.js";
export { NbdExport } from "./nbd-export.js";
export { connectNbdPool, NbdPool } from "./pool.js";
export type { ListedExport } from "./option-list.js";
export type { Extent } from "./status-collector.js";
