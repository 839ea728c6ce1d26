import { BLOCK_SIZE } from "../../../src/model/extents.js";
import { dataRun, DOMAIN, draftDisk, MemoryUndoLog, noise, openRepository } from "./backup-fixture.js";

/** Locks a domain's backups and perhaps begins one, reports and waits: for tests that kill this process. */
const [what, path = "", runtimeRoot = ""] = process.argv.slice(2);
const repository = openRepository(path, runtimeRoot);
await repository.lock(DOMAIN);
if (what === "draft") {
  const sizeBytes = 64 * BLOCK_SIZE;
  const disks = [draftDisk("vda", sizeBytes)];
  const draft = await repository.begin({ id: "b1", domain: DOMAIN, disks }, new MemoryUndoLog());
  draft.disk("vda").expect(dataRun(0, 64));
  await draft.disk("vda").write(0, noise(8 * BLOCK_SIZE, 1));
}
process.send?.("ready");
process.once("disconnect", () => process.exit(1));
