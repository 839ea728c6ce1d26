import { formatBytes, formatDuration } from "../../src/shared/units.js";
import { type Backup, readBackups, readCheckpoints, total } from "./figures.js";
import { fleece } from "./fleece-command.js";
import { proveNothingLeft } from "./leftovers.js";
import { Proofs } from "./proofs.js";
import {
  proveBoot,
  proveFiles,
  proveGuestUnharmed,
  proveOnlyChanges,
  proveSameBytes,
  type Restored,
} from "./prove-content.js";
import { proveDamageIsFound } from "./prove-damage.js";
import { domain, type Scene, setScene } from "./scene.js";
import type { Screen } from "./screen.js";
import { type Evidence, inGuest, letWork, takeBackup, takeComparableBackup } from "./take.js";
import type { Workplace } from "./workplace.js";

/** The whole demo, step by step. Resolves to its proofs; throws if a step cannot be done at all. */
export async function tellStory(workplace: Workplace, screen: Screen): Promise<Proofs> {
  const scene = await screen.step("A VM with three disks", () => setScene(workplace, screen));
  const blockState = await scene.guest.vm.blockState();
  const evidence = await takeBackups(scene);
  const backups = await screen.step("What there is now", () => showLists(scene));
  await screen.step("Verify: every block against its digest", async () => {
    for (const { id } of backups) await fleece(scene, "backup", "verify", id);
  });
  const restored = await screen.step("Restore", () => restoreAll(scene, backups, evidence));

  const proofs = new Proofs(screen);
  const checkpoints = await readCheckpoints(scene);
  await screen.step("Proof: the restored disks are the disks that were", () =>
    proveContent(scene, proofs, restored),
  );
  await screen.step("Proof: an incremental reads only what changed", () => {
    backups.forEach((backup, index) => {
      if (index > 0) proveOnlyChanges(proofs, index + 1, backup, checkpoints[index - 1]);
    });
    return Promise.resolve();
  });
  for (const backup of backups.slice(0, 1)) {
    await screen.step("Proof: verify finds damage", () => proveDamageIsFound(scene, proofs, backup));
  }
  await screen.step("Proof: the guest is unharmed, and nothing is left behind", async () => {
    proveGuestUnharmed(scene, proofs);
    await proveNothingLeft(scene, proofs, blockState, backups, checkpoints);
    await scene.guest.poweroff();
  });
  showSummary(screen, backups);
  return proofs;
}

async function takeBackups(scene: Scene): Promise<Evidence[]> {
  const { screen } = scene;
  const full = await screen.step("Full backup, while the guest works", async () => {
    await inGuest(scene, "mkdir /data/mail", "head -c 3000000 /dev/urandom >/data/mail/letter-1", "sync");
    await letWork(scene);
    return takeComparableBackup(scene, "moment-1", [
      "for f in /data/photos/photo-001?.jpg; do dd if=/dev/urandom of=$f bs=64k count=16 conv=notrunc,fsync; done",
      "rm /data/photos/photo-002?.jpg",
    ]);
  });
  const second = await screen.step("Files come and go; incremental backup", async () => {
    await inGuest(
      scene,
      "rm /data/photos/photo-000?.jpg",
      "head -c 5000000 /dev/urandom >/data/mail/letter-2",
      "dd if=/dev/urandom of=/dev/sda bs=64k count=32 seek=16 oflag=direct",
      "sync",
    );
    await letWork(scene);
    return takeBackup(scene);
  });
  const third = await screen.step("Zeroes and discards; second incremental backup", async () => {
    await inGuest(
      scene,
      "rm /data/documents/orders-000?.csv",
      "dd if=/dev/zero of=/data/mail/letter-2 bs=64k count=40 conv=notrunc",
      "dd if=/dev/zero of=/dev/sda bs=1M count=8 oflag=direct",
      "fstrim /data",
      "sync",
    );
    await letWork(scene);
    return takeComparableBackup(scene, "moment-3", [
      "dd if=/dev/urandom of=/dev/sda bs=1M count=32 oflag=direct",
    ]);
  });
  return [full, second, third];
}

async function showLists(scene: Scene): Promise<Backup[]> {
  await fleece(scene, "backup", "list", domain);
  await fleece(scene, "checkpoint", "list", domain);
  return readBackups(scene);
}

async function restoreAll(
  scene: Scene,
  backups: readonly Backup[],
  evidence: readonly Evidence[],
): Promise<Restored[]> {
  const restored: Restored[] = [];
  for (const [index, found] of evidence.entries()) {
    const folder = `restored-${index + 1}`;
    await fleece(scene, "backup", "restore", backups[index]?.id ?? "", "--to", folder);
    restored.push({ number: index + 1, folder: scene.workplace.file(folder), evidence: found });
  }
  return restored.reverse();
}

/** The newest first: it is what a restore is mostly about. */
async function proveContent(scene: Scene, proofs: Proofs, restored: readonly Restored[]): Promise<void> {
  // It would only take time from the proofs.
  await scene.guest.command("pause");
  for (const one of restored) {
    await proveSameBytes(scene, proofs, one);
    await proveFiles(scene, proofs, one);
  }
  // Last, as a boot changes what was restored.
  for (const one of restored.slice(0, 1)) await proveBoot(scene, proofs, one);
}

function showSummary(screen: Screen, backups: readonly Backup[]): void {
  screen.table(
    ["Backup", "disks", "read", "stored", "zeroes", "guest held", "took"],
    backups.map((backup, index) => [
      `${index + 1} ${backup.level.toLowerCase()}`,
      formatBytes(total(backup, "sizeBytes")),
      formatBytes(total(backup, "readBytes")),
      formatBytes(total(backup, "storedBytes")),
      formatBytes(total(backup, "zeroBytes")),
      // The demo itself had stopped it for the others.
      backup.heldMs === 0 ? "-" : formatDuration(backup.heldMs),
      formatDuration(backup.endTime.getTime() - backup.startTime.getTime()),
    ]),
  );
}
