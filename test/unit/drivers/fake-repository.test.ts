import { testRepositoryModes } from "../../contract/repository.js";
import { FakeDomain } from "../../support/fake-domain.js";
import { FakeRepository } from "../../support/fake-repository.js";

testRepositoryModes("FakeRepository", () => {
  const domain = new FakeDomain([]);
  return Promise.resolve({ repository: new FakeRepository(domain), readers: domain.readers });
});
