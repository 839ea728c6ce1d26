import { findProcesses } from "../../../src/drivers/process-owner.js";
import type { Scene } from "./scene.js";
import { startWithFault, type FaultyCommand, type StepFault } from "./steps.js";

/** When a backup of one disk is stopped for something to happen to it. */
export type Moment = "after the freeze" | "in the midst of the pull" | "before the publication";

export const MOMENTS: readonly Moment[] = [
  "after the freeze",
  "in the midst of the pull",
  "before the publication",
];

/** The first export of a backup is that of its new image, the second that of the frozen disk. */
const EXPORT_OF_DISK = { match: /^qmp block-export-add$/, at: 2 };

const STOPS: Readonly<Record<Moment, Pick<StepFault, "match" | "at">>> = {
  "after the freeze": EXPORT_OF_DISK,
  "in the midst of the pull": { match: /^nbd-read$/, at: 1 },
  "before the publication": { match: /^rename \S+\/backups\/vm\/[^.]/, at: 1 },
};

/** `backup run` that stands still just before the moment's step. */
export async function backupStoppedAt(
  { at }: Scene,
  moment: Moment,
  ...options: string[]
): Promise<FaultyCommand> {
  const fault = { ...STOPS[moment], when: "before", action: "stop" } as const;
  const command = await startWithFault(at, ["backup", "run", "vm", "--json", ...options], fault);
  if (await command.stopped()) return command;
  throw new Error(`The backup did not come to ${moment}: ${command.process.stderr}`);
}

/** The storage daemons of a scene: `p-` directories belong to the images being written, `d-` to inactive disks. */
export async function daemonPids({ at }: Scene, kind: "p-" | "d-"): Promise<number[]> {
  const directory = at.directory.file(`run/${kind}`);
  const found = await findProcesses((args) => args.some((arg) => arg.includes(directory)));
  return found.map(({ pid }) => pid);
}
