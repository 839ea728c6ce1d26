import { formatBytes } from "../../src/shared/units.js";
import { compareImages } from "../support/image-tool.js";
import type { TestDisk } from "../support/vm-arguments.js";
import type { Backup, Checkpoint } from "./figures.js";
import type { Proofs } from "./proofs.js";
import { readFileSystem } from "./restored-disk.js";
import { boot, type Scene } from "./scene.js";
import { type Evidence, keptFiles } from "./take.js";

export interface Restored {
  /** What the proofs call the backup, counting from 1. */
  readonly number: number;
  readonly folder: string;
  readonly evidence: Evidence;
}

/** Compares with the copies that were made at the backup's moment, and an idle disk with what it is now. */
export async function proveSameBytes({ guest }: Scene, proofs: Proofs, restored: Restored): Promise<void> {
  const { copies } = restored.evidence;
  const pairs = [
    ...[...copies].map(([target, path]) => ({
      target,
      path,
      format: "raw" as const,
      what: "the copy of its moment",
    })),
    { ...guest.vm.disk("vdb"), what: "the disk that the guest left alone" },
  ];
  for (const { target, path, format, what } of pairs) {
    const own = guest.vm.disk(target).format;
    const { identical, text } = await compareImages(imageOf(restored, target, own), own, path, format);
    proofs.add({
      claim: `Backup ${restored.number}: ${target} and ${what}`,
      expected: "identical",
      got: identical ? "identical" : text,
    });
  }
}

/** What the guest knew before the backup, found on the restored disk without any help of the guest. */
export async function proveFiles({ workplace }: Scene, proofs: Proofs, restored: Restored): Promise<void> {
  const about = `Backup ${restored.number}: vda`;
  const folder = workplace.file(`look-${restored.number}`);
  const { checkExitCode, words, sums } = await readFileSystem(imageOf(restored, "vda", "qcow2"), folder);
  proofs.add({
    claim: `${about}, journal replayed, e2fsck -fn`,
    expected: "clean",
    got: checkExitCode === 0 ? "clean" : `exit code ${checkExitCode}\n${words}`,
  });
  proveSums(proofs, `${about}, SHA-256 by debugfs`, restored.evidence.sums, sums);
}

/** Boots the restored disks: they must mount, and the guest's work must go on where the backup found it. */
export async function proveBoot(scene: Scene, proofs: Proofs, restored: Restored): Promise<void> {
  const { workplace } = scene;
  const disk = (target: string): TestDisk => {
    return { target, path: imageOf(restored, target, "qcow2"), format: "qcow2" };
  };
  const guest = await workplace.own(await boot(scene, "restored", [disk("vda"), disk("vdb")]));
  const [, text] = await guest.waitFor(/^READY work=(\d+)/, { timeoutMs: 1_000 });
  const last = await guest.work(3);
  const step = Number(text);
  const [from, to] = restored.evidence.steps;
  proofs.add({
    claim: `Backup ${restored.number}: boots, and the guest works on`,
    expected: `from a step between ${from}, before the backup, and ${to}, after it`,
    got: `from step ${step} to ${last} (step ${from} was before the backup, step ${to} after it)`,
    ok: step >= from && step < to && last === step + 3,
  });
  const sums = await guest.sums();
  proveSums(proofs, `Backup ${restored.number}: SHA-256 by the restored guest`, restored.evidence.sums, sums);
  await guest[Symbol.asyncDispose]();
}

/** Nothing may be read or written that QEMU's bitmap does not count as changed; an idle disk costs nothing. */
export function proveOnlyChanges(
  proofs: Proofs,
  number: number,
  backup: Backup,
  parent: Checkpoint | undefined,
): void {
  for (const { target, readBytes, storedBytes, zeroBytes, sizeBytes } of backup.disks) {
    const changed = parent?.disks.find((disk) => disk.target === target)?.dirtyBytes ?? -1;
    const [read, stored, zeroes] = [readBytes, storedBytes, zeroBytes].map(formatBytes);
    proofs.add({
      claim: `Backup ${number}: ${target}, ${formatBytes(changed)} of ${formatBytes(sizeBytes)} had changed`,
      expected: "no more than that read, and no more than that written",
      got: `${read} read, ${stored} stored, ${zeroes} zeroed`,
      ok: readBytes <= changed && storedBytes + zeroBytes <= changed,
    });
  }
}

/** A failing disk would show in the guest's own messages. */
export function proveGuestUnharmed({ guest }: Scene, proofs: Proofs): void {
  const messages = guest.lines.filter((line) => !line.startsWith("R "));
  const complaints = messages.filter((line) => /error|problem|hung|corrupt|panic/i.test(line));
  proofs.add({ claim: "Errors in the guest", expected: "none", got: complaints.join("\n") || "none" });
}

function imageOf({ folder }: Restored, target: string, format: string): string {
  return `${folder}/${target}.${format}`;
}

function proveSums(
  proofs: Proofs,
  claim: string,
  expected: ReadonlyMap<string, string>,
  found: ReadonlyMap<string, string>,
): void {
  const got = keptFiles(found);
  const wrong = [...expected].filter(([path, sum]) => got.get(path) !== sum).map(([path]) => path);
  const extra = [...got.keys()].filter((path) => !expected.has(path));
  const same = `all ${expected.size} files as before the backup`;
  proofs.add({
    claim,
    expected: same,
    got:
      wrong.length + extra.length === 0
        ? same
        : `wrong or missing: ${wrong.join(" ") || "none"}; not there before: ${extra.join(" ") || "none"}`,
  });
}
