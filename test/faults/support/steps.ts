import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { startFleece, type FleeceOptions, type FleeceProcess } from "../../support/fleece.js";
import type { Site } from "../../support/site.js";

const preload = fileURLToPath(new URL("steps.mjs", import.meta.url));

/** What is done to the built command at its `at`-th step (from 1) whose name matches. */
export interface StepFault {
  readonly match: RegExp;
  readonly at: number;
  /** `after`: for steps of the file system, once they have been done; for others, once they are under way. */
  readonly when: "before" | "after";
  /**
   * `kill` and `stop` send SIGKILL and SIGSTOP; `fail` lets the step fail with ENOSPC, `fail-from` all later ones too.
   */
  readonly action: "kill" | "stop" | "fail" | "fail-from";
  /** Before each step, the directory `from` is copied to `<to>/<number of the step>`. */
  readonly copy?: { readonly from: string; readonly to: string };
}

/** A record of the journal gets its content, or goes. Each of them is a moment at which a kill finds other work to undo. */
export const JOURNAL = /^(rename|rm) \S+\/state\/operations\/\S+\.json$/;

/**
 * All steps that change something: the journal, files and directories, QEMU and the storage daemons over QMP, and programs.
 */
export const CHANGES =
  /^(rename |link |rm \S+\/(state\/operations|backups|scratch|restored)|mkdir \S+\/backups|unlink |spawn (?!qemu-img info)|qmp (?!query-|qmp_|qom-list|qom-get|x-debug))/;

let runs = 0;

/** Starts `fleece --embedded …` with a fault in it; without one it only counts. */
export function startWithFault(
  at: Site,
  args: readonly string[],
  fault: Pick<StepFault, "match"> & Partial<StepFault>,
  options: Pick<FleeceOptions, "script"> = {},
): Promise<FaultyCommand> {
  return startFaulty(at, ["--embedded", ...args], fault, options);
}

/** The same for `fleece …`, an agent for example. */
export async function startFaulty(
  at: Pick<Site, "directory" | "configPath">,
  args: readonly string[],
  fault: Pick<StepFault, "match"> & Partial<StepFault>,
  options: Pick<FleeceOptions, "script"> = {},
): Promise<FaultyCommand> {
  const log = at.directory.file(`steps-${runs++}.log`);
  const settings = { ...fault, match: fault.match.source, log };
  const command = await startFleece(args, {
    ...options,
    configPath: at.configPath,
    env: { NODE_OPTIONS: `--import ${preload}`, FLEECE_TEST_STEPS: JSON.stringify(settings) },
  });
  return new FaultyCommand(command, log);
}

export class FaultyCommand {
  readonly process: FleeceProcess;
  readonly #log: string;

  constructor(process: FleeceProcess, log: string) {
    this.process = process;
    this.#log = log;
  }

  /** The names of the steps that matched so far. */
  async steps(): Promise<string[]> {
    const text = await readFile(this.#log, "utf8").catch(() => "");
    return text.split("\n").filter((line) => line !== "");
  }

  /** Waits until the command has stopped itself at its step; false if it ended before that. */
  async stopped(): Promise<boolean> {
    while (this.process.running) {
      const stat = await readFile(`/proc/${this.process.pid}/stat`, "utf8").catch(() => "");
      if (/\) T /.test(stat)) return true;
      await delay(5);
    }
    return false;
  }

  continue(): void {
    process.kill(this.process.pid, "SIGCONT");
  }
}
