import type { Negotiated } from "./handshake.js";
import { NbdExport } from "./nbd-export.js";
import type { Session } from "./session.js";

/** An export over one connection. */
export class NbdConnection extends NbdExport {
  /** Use `connectNbd`. */
  constructor(session: Session, exportName: string, negotiated: Negotiated) {
    super(exportName, [{ session, negotiated }]);
  }
}
