export interface NbdServerOptions {
  /** Path of a Unix socket. Exactly one of `socketPath` and `host` is given. */
  readonly socketPath?: string;
  readonly host?: string;
  /** TCP port, default 10809. */
  readonly port?: number;
  /** For connecting and the whole handshake, default 30 s. */
  readonly connectTimeoutMs?: number;
  /** Aborts connecting. An established connection is ended with `close`. */
  readonly signal?: AbortSignal;
}

export interface NbdConnectOptions extends NbdServerOptions {
  /** At most 4096 bytes of UTF-8; the empty name is the server's default export. */
  readonly exportName: string;
  /** Metadata contexts by their full names, such as `base:allocation` or `qemu:dirty-bitmap:NAME`. */
  readonly metaContexts?: readonly string[];
  /** Connect even if the server lacks some contexts, default false; `contexts` then tells which there are. */
  readonly optionalContexts?: boolean;
  /** A request that is not answered in this time ends the connection, default 60 s. */
  readonly requestTimeoutMs?: number;
}

export interface RequestOptions {
  /** Rejects the call at once. The server still does, or has done, what was sent to it. */
  readonly signal?: AbortSignal;
}

export interface ReadOptions extends RequestOptions {
  /**
   * Memory of exactly `length` bytes to read into. After an abort it may still be written to until the connection
   * is closed.
   */
  readonly into?: Uint8Array;
}

export interface WriteOptions extends RequestOptions {
  /** Settle only when the data is on stable storage. */
  readonly fua?: boolean;
}

export interface WriteZeroesOptions extends WriteOptions {
  /** Keep the blocks allocated: no hole. */
  readonly noHole?: boolean;
  /** Fail with ENOTSUP at once rather than be as slow as a write. */
  readonly fastZero?: boolean;
}

export interface BlockStatusOptions extends RequestOptions {
  /** Ask for a single extent within the request. */
  readonly reqOne?: boolean;
}

export interface ExtentsOptions extends RequestOptions {
  /** Default: from 0 to the end of the export. */
  readonly offset?: number;
  readonly length?: number;
}
