import { copyToRaw } from "../support/image-tool.js";
import { fleece } from "./fleece-command.js";
import { backUpAtKnownMoment } from "./moment.js";
import { domain, type Scene } from "./scene.js";

/** What must be found again in a restored backup. */
export interface Evidence {
  /** Copies of disks at the backup's moment: raw images by target. Empty if the guest was not stopped for them. */
  readonly copies: ReadonlyMap<string, string>;
  /** Digests of the files that the guest's own work leaves alone, computed by the guest before the backup. */
  readonly sums: ReadonlyMap<string, string>;
  /** The guest's last step that was surely on its disk before the backup began, and one after the backup's end. */
  readonly steps: readonly [number, number];
}

/** The guest's own work changes and removes the other files all the time. */
export function keptFiles(sums: ReadonlyMap<string, string>): Map<string, string> {
  return new Map([...sums].filter(([path]) => /^\.\/(?:documents|licences|mail|photos)\//.test(path)));
}

/** Commands in the guest, shown as they would be typed there. */
export async function inGuest({ guest, screen }: Scene, ...commands: string[]): Promise<void> {
  for (const command of commands) {
    screen.command("guest#", command);
    const { exitStatus, lines } = await guest.command(command);
    if (exitStatus !== 0) {
      throw new Error(`Expected \`${command}\` to succeed in the guest, got:\n${lines.join("\n")}`);
    }
  }
}

/** Lets the guest do its own work for a while. */
export async function letWork({ guest, pulse, screen }: Scene): Promise<void> {
  const startMs = performance.now();
  await guest.work(20);
  screen.line(`The guest works: ${pulse.since(startMs)}`);
}

/** Takes a backup while the guest works. */
export async function takeBackup(scene: Scene): Promise<Evidence> {
  const known = await askGuest(scene);
  const startMs = performance.now();
  await fleece(scene, "backup", "run", domain);
  scene.screen.line(`The guest meanwhile: ${scene.pulse.since(startMs)}`);
  return { copies: new Map(), sums: known.sums, steps: [known.step, await scene.guest.work(1)] };
}

/** The same, with copies of the disks to compare with; the guest does `meanwhile` while the backup reads. */
export async function takeComparableBackup(
  scene: Scene,
  name: string,
  meanwhile: readonly string[],
): Promise<Evidence> {
  const { guest, screen, workplace } = scene;
  const known = await askGuest(scene);
  screen.line(
    "To compare later, the guest is stopped and its disks are copied; it runs on once the backup has its moment",
  );
  const copies = new Map(["vda", "sda"].map((target) => [target, workplace.file(`${name}-${target}.raw`)]));
  await backUpAtKnownMoment(guest.vm, {
    copyDisks: async () => {
      for (const [target, copy] of copies) {
        const { path, format } = guest.vm.disk(target);
        await copyToRaw(path, format, copy);
      }
    },
    backUp: () => fleece(scene, "backup", "run", domain),
    meanwhile: () => inGuest(scene, ...meanwhile),
  });
  return { copies, sums: known.sums, steps: [known.step, await guest.work(1)] };
}

/** What the guest knows of its disk, with all of it written out. */
async function askGuest({ guest, screen }: Scene): Promise<{ sums: Map<string, string>; step: number }> {
  const { lines } = await guest.command("sync; cat /data/state/counter");
  const sums = keptFiles(await guest.sums());
  screen.line(`The guest has computed the SHA-256 of ${sums.size} files`);
  return { sums, step: Number(lines[0]) };
}
