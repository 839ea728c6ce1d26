import type { CopySpeed } from "../../ports/block-driver.js";
import type { JobInfo, QmpSession } from "../../qmp/index.js";

/** A block job whose speed follows that of its pace, each time that somebody looks at the job. */
export class PacedJob {
  readonly #qmp: Pick<QmpSession, "execute">;
  readonly #id: string;
  readonly #pace: CopySpeed | undefined;
  #speed: number;

  constructor(qmp: Pick<QmpSession, "execute">, id: string, pace: CopySpeed | undefined) {
    this.#qmp = qmp;
    this.#id = id;
    this.#pace = pace;
    this.#speed = this.#wanted();
  }

  /** To start it with. */
  get speed(): number {
    return this.#speed;
  }

  look(job: JobInfo): void {
    this.#pace?.copied(job["current-progress"]);
    const speed = this.#wanted();
    if (speed === this.#speed || job.status === "concluded") return;
    this.#speed = speed;
    // A job that has just ended refuses it, and one that cannot be reached any more shows that to who follows it.
    this.#qmp.execute("block-job-set-speed", { device: this.#id, speed }).catch(() => undefined);
  }

  /** QEMU's 0 is no limit. */
  #wanted(): number {
    const speed = this.#pace?.speed() ?? Infinity;
    return speed === Infinity ? 0 : Math.max(1, Math.floor(speed));
  }
}
