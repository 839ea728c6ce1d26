export interface NbdServerOptions {
  /** Path of a Unix socket. Exactly one of `socketPath` and `host` is given. */
  readonly socketPath?: string;
  readonly host?: string;
  /** TCP port, default 10809. */
  readonly port?: number;
  /** TLS, if given: without it, a server that requires TLS is an error, and nothing is encrypted. */
  readonly tls?: NbdTlsOptions;
  /** For connecting and the whole handshake, with that of TLS, default 30 s. */
  readonly connectTimeoutMs?: number;
  /** Aborts connecting. An established connection is ended with `close`. */
  readonly signal?: AbortSignal;
}

/**
 * At least TLS 1.2. Either certificates (X.509), of which none at all means to trust what Node trusts; or a key shared
 * beforehand (`psk` or `pskFile`).
 */
export interface NbdTlsOptions {
  /**
   * `require` (default): connect with TLS or not at all. `allow`: in clear where the server has no TLS, which anybody
   * on the way can make it look like.
   */
  readonly mode?: "require" | "allow";
  /** Directory with `ca-cert.pem` and perhaps `client-cert.pem` and `client-key.pem`. */
  readonly certificates?: string;
  /** PEM; takes the place of the file in `certificates`. */
  readonly ca?: string | Buffer;
  readonly cert?: string | Buffer;
  readonly key?: string | Buffer;
  /** The name that the server's certificate must have: default `host`, and over a Unix socket `localhost`. */
  readonly hostname?: string;
  /** False takes any certificate, from anybody; default true. */
  readonly verifyPeer?: boolean;
  readonly psk?: { readonly identity: string; readonly key: Uint8Array };
  /** File with lines of `username:key in hexadecimal digits`. */
  readonly pskFile?: string;
  /** Whose line of `pskFile`, default the name of the user who runs this process. */
  readonly username?: string;
}

/** What a URI does not say. */
export type BesideUri<T> = Omit<T, "socketPath" | "host" | "port" | "exportName">;

export interface NbdExportOptions extends NbdServerOptions {
  /** At most 4096 bytes of UTF-8; the empty name is the server's default export. */
  readonly exportName: string;
}

export interface NbdListContextsOptions extends NbdExportOptions {
  /** Full names, or wildcards such as `base:` and `qemu:dirty-bitmap:`; default: all contexts. */
  readonly queries?: readonly string[];
}

export interface NbdConnectOptions extends NbdExportOptions {
  /** Metadata contexts by their full names, such as `base:allocation` or `qemu:dirty-bitmap:NAME`. */
  readonly metaContexts?: readonly string[];
  /** Connect even if the server lacks some contexts, default false; `contexts` then tells which there are. */
  readonly optionalContexts?: boolean;
  /**
   * Ask for extended headers first, default true: 64-bit lengths. A server that lacks them answers so, at the cost of
   * one round trip; a few old ones hang up instead.
   */
  readonly extendedHeaders?: boolean;
  /** A request that is not answered in this time ends the connection, default 60 s. */
  readonly requestTimeoutMs?: number;
}

export interface NbdPoolOptions extends NbdConnectOptions {
  /** How many connections at most, 1 to 16, default 4. */
  readonly connections?: number;
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
  /**
   * Ask for each piece in one chunk (DF), default false: saves the server a look for holes where there are none.
   * A hint: without effect where the server does not offer it, and repeated without it where a piece is too long.
   */
  readonly df?: boolean;
}

export interface WriteOptions extends RequestOptions {
  /** Settle only when the data is on stable storage. Where the server has no FUA, a flush follows. */
  readonly fua?: boolean;
}

export interface WriteZeroesOptions extends WriteOptions {
  /** Keep the blocks allocated: no hole. */
  readonly noHole?: boolean;
  /**
   * Fail with ENOTSUP at once rather than be as slow as a write. Of a range in several pieces, some may be zero then.
   */
  readonly fastZero?: boolean;
}

export interface StatusOptions extends RequestOptions {
  /**
   * Only these of the connection's contexts, default all. Where the server can leave the others out (`canFilterStatus`)
   * it is asked to, and need not look them up; what another server says of them is dropped here.
   */
  readonly contexts?: readonly string[];
}

export interface BlockStatusOptions extends StatusOptions {
  /** Ask for a single extent within the request. */
  readonly reqOne?: boolean;
}

export interface ExtentsOptions extends StatusOptions {
  /** Default: from 0 to the end of the export. */
  readonly offset?: number;
  readonly length?: number;
}
