import { NbdReaderFactory } from "../../../src/drivers/nbd-io.js";
import { testRepositoryModes } from "../../contract/repository.js";
import { RepositoryFixture } from "./backup-fixture.js";

testRepositoryModes("DirectoryRepository", async () => {
  const { repository } = await RepositoryFixture.create();
  return { repository, readers: new NbdReaderFactory() };
});
