import type { FrontAddress, FrontOffer } from "../model/front-offer.js";
import type { HostPort } from "../model/host-port.js";

/** Port 0 asks for any free one. The socket of a path is for this user alone. */
export type { FrontAddress };

/** The right of some clients to read one export for some time. */
export interface ExportGrant {
  /** As clients name it; unique in this front. */
  readonly exportName: string;
  /** The private socket that serves the export read-only, and its name there. */
  readonly backend: { readonly socketPath: string; readonly exportName: string };
  readonly clients: FrontOffer["clients"];
  /** A connection without a byte in either direction for so long is closed. */
  readonly idleMs: number;
  /** Of all its connections together, both directions; default: as fast as it goes. */
  readonly bytesPerSecond?: number;
  /** Unix milliseconds: the grant ends then by itself; default: it lasts until it is revoked. */
  readonly untilMs?: number;
}

export interface GrantStats {
  readonly exportName: string;
  /** Connections that read the export now, and all that ever did. */
  readonly connections: number;
  readonly connectionsTotal: number;
  readonly bytesSent: number;
  readonly bytesReceived: number;
}

export interface FrontStats {
  /** Connections in any state, handshakes included. */
  readonly connections: number;
  /** Connections that were closed, and exports that were denied, for a reason that lies with the client. */
  readonly refusals: number;
  readonly grants: readonly GrantStats[];
}

/** The NBD server that remote readers meet. It shows a client the exports granted to it, and nothing tells of others. */
export interface ExportFront extends AsyncDisposable {
  /** Resolves with the address that clients use. Fails with ALREADY_EXISTS if the address is in use. */
  listen(address: FrontAddress): Promise<FrontAddress>;
  /** Fails with ALREADY_EXISTS if the name is granted. */
  grant(grant: ExportGrant): void;
  /** Moves the end of a grant; its connections go on. Fails with EXPORT_NOT_FOUND, also when the grant has ended. */
  renew(exportName: string, untilMs: number): void;
  /** Ends a grant and destroys its connections at once. Does nothing if there is no such grant. */
  revoke(exportName: string): void;
  stats(): FrontStats;
  /** Stops listening, destroys all connections and ends all grants. Idempotent. */
  close(): Promise<void>;
}

/** Opens fronts where the agent may listen. */
export interface FrontOpener {
  /** The one TCP address of the configuration, if it has one; `plaintext`: there is no TLS at it. */
  readonly tcp: { readonly address: HostPort; readonly plaintext: boolean } | undefined;
  /**
   * A front that listens there, without grants. A socket that nobody answers is replaced. Fails with ALREADY_EXISTS or
   * AGENT_RUNNING if the address is in use, and with PATH_NOT_FOUND, PERMISSION_DENIED or TLS_INVALID if the certificate cannot
   * be used.
   */
  open(address: FrontAddress): Promise<ExportFront>;
}
