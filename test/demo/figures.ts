import { z } from "zod";
import { domain, type Scene } from "./scene.js";
import { fleeceJson } from "./fleece-command.js";

const bytes = z.coerce.number();

const backupsSchema = z.object({
  backups: z.array(
    z.object({
      id: z.string(),
      level: z.enum(["FULL", "INCREMENTAL"]),
      startTime: z.coerce.date(),
      endTime: z.coerce.date(),
      heldMs: z.coerce.number(),
      checkpoint: z.string(),
      disks: z.array(
        z.object({
          target: z.string(),
          sizeBytes: bytes,
          readBytes: bytes,
          storedBytes: bytes,
          zeroBytes: bytes,
        }),
      ),
    }),
  ),
});

const checkpointsSchema = z.object({
  checkpoints: z.array(
    z.object({
      name: z.string(),
      disks: z.array(z.object({ target: z.string(), bitmap: z.string(), dirtyBytes: bytes.optional() })),
    }),
  ),
});

export type Backup = z.infer<typeof backupsSchema>["backups"][number];
export type Checkpoint = z.infer<typeof checkpointsSchema>["checkpoints"][number];
export type SizeKind = "sizeBytes" | "readBytes" | "storedBytes" | "zeroBytes";

/** Oldest first. */
export async function readBackups(scene: Scene): Promise<Backup[]> {
  return backupsSchema.parse(await fleeceJson(scene, "backup", "list", domain)).backups;
}

/** Oldest first. */
export async function readCheckpoints(scene: Scene): Promise<Checkpoint[]> {
  return checkpointsSchema.parse(await fleeceJson(scene, "checkpoint", "list", domain)).checkpoints;
}

export function total({ disks }: Backup, kind: SizeKind): number {
  return disks.reduce((sum, disk) => sum + disk[kind], 0);
}
