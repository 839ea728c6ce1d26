import type { HostPort } from "../../model/host-port.js";
import type { Clock } from "../../ports/clock.js";
import type { ExportFront, FrontAddress, FrontOpener } from "../../ports/export-front.js";
import type { Logger } from "../../ports/logger.js";
import { removeStaleSocket } from "../agent-claim.js";
import { checkSocketPath } from "../runtime-directory.js";
import { readTlsFiles, type TlsPaths } from "../tls-files.js";
import { NbdFront, type FrontLimits, type NbdFrontOptions } from "./nbd-front.js";

export interface NbdFrontsOptions {
  readonly tcp:
    | {
        readonly address: HostPort;
        /** Read anew for each front, so that they may be renewed. */
        readonly tls: TlsPaths | "plaintext";
      }
    | undefined;
  readonly limits: Partial<FrontLimits> | undefined;
  readonly clock: Clock;
  readonly logger: Logger;
}

export class NbdFronts implements FrontOpener {
  readonly #options: NbdFrontsOptions;

  constructor(options: NbdFrontsOptions) {
    this.#options = options;
  }

  get tcp(): FrontOpener["tcp"] {
    const { tcp } = this.#options;
    return tcp && { address: tcp.address, plaintext: tcp.tls === "plaintext" };
  }

  /** Fails as `readTlsFiles` does: to be asked before anybody wants to read. */
  async check(): Promise<void> {
    await this.#tls();
  }

  async open(address: FrontAddress): Promise<ExportFront> {
    const isSocket = "socketPath" in address;
    if (isSocket) await removeStaleSocket(checkSocketPath(address.socketPath));
    const { clock, logger, limits } = this.#options;
    const front = new NbdFront({
      tls: isSocket ? "plaintext" : await this.#tls(),
      clock,
      logger,
      ...(limits && { limits }),
    });
    await front.listen(address);
    return front;
  }

  async #tls(): Promise<NbdFrontOptions["tls"]> {
    const { tls = "plaintext" } = this.#options.tcp ?? {};
    return tls === "plaintext" ? tls : readTlsFiles(tls);
  }
}
