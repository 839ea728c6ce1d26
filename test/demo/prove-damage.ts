import { copyFile, rename } from "node:fs/promises";
import { imageMap, writeImage } from "../support/image-tool.js";
import type { Backup } from "./figures.js";
import { tryFleece } from "./fleece-command.js";
import type { Proofs } from "./proofs.js";
import { domain, type Scene } from "./scene.js";

const verificationFoundDamage = 6;

/** Changes one sector of a backup behind fleece's back, lets fleece verify it, and puts it right again. */
export async function proveDamageIsFound(scene: Scene, proofs: Proofs, { id }: Backup): Promise<void> {
  const image = scene.workplace.file("backups", domain, id, "vda.qcow2");
  const aside = scene.workplace.file("aside.qcow2");
  await copyFile(image, aside);
  const offset = (await imageMap(image, "qcow2")).findLast((range) => range.data)?.offset ?? 0;
  const change = `write -P 0xdb ${offset} 512`;
  scene.screen.command("$", `qemu-io -c '${change}' backups/${domain}/${id}/vda.qcow2`);
  await writeImage(image, "qcow2", change);
  const { exitCode, stderr } = await tryFleece(scene, "backup", "verify", id);
  await rename(aside, image);
  proofs.add({
    claim: "The changed sector is found, by disk and offset",
    expected: `exit code ${verificationFoundDamage}, and vda and ${offset} in the message`,
    got: `exit code ${String(exitCode)}`,
    ok: exitCode === verificationFoundDamage && stderr.includes("vda") && stderr.includes(String(offset)),
  });
}
