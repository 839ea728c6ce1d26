import { join } from "node:path";
import * as z from "zod";
import { isName } from "../../model/names.js";
import { errnoOf } from "../../shared/errors.js";
import { openExisting, replaceDurably } from "../durable-files.js";
import { MERGING_FILE } from "./layout.js";

/** A few dozen bytes. */
const MAX_BYTES = 4096;

const schema = z.strictObject({
  schemaVersion: z.literal(1),
  into: z.string().refine((value) => isName("backup", value)),
});

/** From when this is durable, the backup in `directory` is none any more. */
export async function writeMergeRecord(directory: string, into: string): Promise<void> {
  const record: z.infer<typeof schema> = { schemaVersion: 1, into };
  await replaceDurably(join(directory, MERGING_FILE), `${JSON.stringify(record)}\n`);
}

export type MergeRecord =
  | { readonly state: "none" }
  | { readonly state: "merging"; readonly into: string }
  | { readonly state: "unusable"; readonly damage: string };

export async function readMergeRecord(directory: string): Promise<MergeRecord> {
  const unusable = { state: "unusable", damage: "the record of its merge cannot be used" } as const;
  try {
    const file = await openExisting(join(directory, MERGING_FILE));
    try {
      if ((await file.stat()).size > MAX_BYTES) return unusable;
      const parsed = schema.safeParse(JSON.parse(await file.readFile("utf8")));
      return parsed.success ? { state: "merging", into: parsed.data.into } : unusable;
    } finally {
      await file.close();
    }
  } catch (error) {
    return errnoOf(error) === "ENOENT" ? { state: "none" } : unusable;
  }
}
