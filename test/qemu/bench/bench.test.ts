import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { measureClient } from "../../bench/support/child.js";
import { randomImage, freshImage, BenchExport } from "../../bench/support/exports.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";

const run = promisify(execFile);
const SIZE_BYTES = 64 << 20;

/** That the benchmarks run; what they measure is no test's business. */
describe("npm run bench", () => {
  it("measures ours and the peers and prints a table", async () => {
    const directory = await temporaryDirectory();
    const script = fileURLToPath(new URL("../../bench/bench.ts", import.meta.url));
    const flags = ["--conditions=source", "--import", "tsx", script];
    const options = ["--mib", "64", "--rounds", "1", "--directory", directory.path, "--no-vates"];
    const { stdout } = await run(process.execPath, [...flags, ...options]);
    expect(stdout).toMatch(/^nbdcopy +\d/m);
    expect(stdout).toMatch(/^ours 2048 KiB × 2 +\d/m);
    expect(stdout).toMatch(/^ours, our target +\d/m);
    expect(stdout).toMatch(/^@vates\/nbd-client.*left out$/m);
  });

  it("copies in a client of its own, which knows how much it moved", async () => {
    const directory = await temporaryDirectory();
    const image = await randomImage(SIZE_BYTES, directory.path);
    const target = await freshImage(directory.file("target.qcow2"), SIZE_BYTES);
    const from = untilTestEnds(await BenchExport.storageDaemon(directory.file("a"), image));
    const to = untilTestEnds(await BenchExport.qemuNbd(directory.file("b"), target));
    const copied = await measureClient("copy.ts", from.uri, to.uri);
    expect(copied.bytes).toBe(SIZE_BYTES);
    expect(copied.cpuSeconds).toBeGreaterThan(0);
  });
});
