import { join } from "node:path";
import * as z from "zod";
import { isName } from "../../model/names.js";
import { errnoOf, isFleeceError } from "../../shared/errors.js";
import { openExisting, writeDurably } from "../durable-files.js";
import { COPIED_FILE } from "./layout.js";

/** A few dozen bytes. */
const MAX_BYTES = 4096;

const schema = z.strictObject({
  schemaVersion: z.literal(1),
  /** The repository that has the original. */
  from: z.string().refine((value) => isName("repository", value)),
});

/** Beside the manifest, not in it: for everybody who reads it, also an earlier version, a copy is a backup as any other. */
export async function writeCopyRecord(directory: string, from: string): Promise<void> {
  const record: z.infer<typeof schema> = { schemaVersion: 1, from };
  await writeDurably(join(directory, COPIED_FILE), `${JSON.stringify(record)}\n`);
}

/** Undefined if the backup is no copy. A record that cannot be used is none: the backup can be read without it. */
export async function readCopyRecord(directory: string): Promise<string | undefined> {
  try {
    const file = await openExisting(join(directory, COPIED_FILE));
    try {
      if ((await file.stat()).size > MAX_BYTES) return undefined;
      return schema.safeParse(JSON.parse(await file.readFile("utf8"))).data?.from;
    } finally {
      await file.close();
    }
  } catch (error) {
    if (errnoOf(error) !== undefined || isFleeceError(error) || error instanceof SyntaxError)
      return undefined;
    throw error;
  }
}
