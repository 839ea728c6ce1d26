import { rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it, vi } from "vitest";
import { ManifestFiles } from "../../../src/drivers/repository/manifest-files.js";
import { temporaryDirectory } from "../../support/lifetime.js";

it("parses a manifest once, and anew when another file has its name or its content has changed", async () => {
  const { path } = await temporaryDirectory();
  const manifest = join(path, "manifest.json");
  const files = new ManifestFiles();
  expect(await files.read(manifest)).toEqual({ damage: "it has no manifest" });
  const parse = vi.spyOn(JSON, "parse");
  await writeFile(manifest, "{ ");
  expect(await files.read(manifest)).toEqual({ damage: "its manifest is not JSON" });
  expect(await files.read(manifest)).toEqual({ damage: "its manifest is not JSON" });
  expect(parse).toHaveBeenCalledTimes(1);
  // Of the same length.
  await writeFile(join(path, "new"), "{}");
  await rename(join(path, "new"), manifest);
  expect((await files.read(manifest)).damage).toMatch(/is not valid at schemaVersion/);
  await writeFile(manifest, "[1,2]");
  expect((await files.read(manifest)).damage).toMatch(/is not valid: /);
});
