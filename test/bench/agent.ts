import { mkdir, readFile } from "node:fs/promises";
import { performance } from "node:perf_hooks";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import { connectApi } from "../../src/api/client.js";
import { writeConfig } from "../support/config-file.js";
import { startFleece } from "../support/fleece.js";
import { qemuImg } from "../support/image-tool.js";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import { format, median } from "./support/figures.js";

/**
 * `npm run bench:agent -- [--domains 100] [--checkpoints 1000] [--calls 1000]`: how long a real agent takes to list that many
 * domains (inactive ones, each with an image) and checkpoints (of the first of them), and what memory it has when idle and
 * after every quarter of that many calls: if the last quarters still add to it, something is never let go. Needs a build.
 */
const { values } = parseArgs({
  options: {
    domains: { type: "string", default: "100" },
    checkpoints: { type: "string", default: "1000" },
    calls: { type: "string", default: "1000" },
  },
});
const domainCount = Number(values.domains);
const checkpointCount = Number(values.checkpoints);
const callCount = Number(values.calls);
const RUNS = 5;

await using directory = await TemporaryDirectory.create();
for (const name of ["images", "scratch", "backups"]) await mkdir(directory.file(name));
const names = Array.from({ length: domainCount }, (_, index) => `vm${index}`);
const fileOf = (name: string): string => directory.file(`images/${name}.qcow2`);
for (const name of names) await qemuImg("create", "-q", "-f", "qcow2", fileOf(name), "1G");
const [first = "vm0"] = names;
await addCheckpoints(fileOf(first));
const configPath = await writeConfig(directory.path, {
  domains: names.map((name) => ({
    name,
    disks: [{ target: "vda", file: fileOf(name), format: "qcow2" as const }],
  })),
  more: { runtimeDir: directory.file("run") },
});

await using agent = await startFleece(["serve"], { configPath });
await agent.waitForOutput(/The agent answers on/, { timeoutMs: 60_000 });
await delay(1000);
const memory: [string, string][] = [["idle", await residentMib(agent.pid)]];
using api = await connectApi(directory.file("run/agent.sock"));

const times = [
  ["list of", "answers", "median ms", "slowest ms"],
  await timed(
    "domains",
    async () => (await api.call("Domains.List", { pageSize: 0, pageToken: "" })).domains.length,
  ),
  await timed("checkpoints", () => listCheckpoints(1000)),
  await timed("checkpoints, in pages of 100", () => listCheckpoints(100)),
];
memory.push(["after the lists", await residentMib(agent.pid)]);
// Calls as clients make them all the time: answers, and an error.
for (let quarter = 1; quarter <= 4; quarter++) {
  for (let call = 0; call < callCount / 4; call += 2) {
    await api.call("Backups.List", { domain: first, pageSize: 0, pageToken: "" });
    await api.call("BlockSnapshots.Get", { domain: first, name: "none" }).catch(() => undefined);
  }
  memory.push([`after ${Math.round((callCount * quarter) / 4)} calls`, await residentMib(agent.pid)]);
}
process.stdout.write(`${format(times)}\n\n${format([["resident memory", "MiB"], ...memory])}\n`);

async function listCheckpoints(pageSize: number): Promise<number> {
  let count = 0;
  for (let pageToken: string | undefined = ""; pageToken !== undefined;) {
    const page: { checkpoints: readonly object[]; nextPageToken?: string | undefined } = await api.call(
      "Checkpoints.List",
      { domain: first, pageSize, pageToken },
    );
    count += page.checkpoints.length;
    pageToken = page.nextPageToken;
  }
  return count;
}

async function timed(what: string, list: () => Promise<number>): Promise<string[]> {
  const took: number[] = [];
  let count = 0;
  for (let run = 0; run < RUNS; run++) {
    const start = performance.now();
    count = await list();
    took.push(performance.now() - start);
  }
  return [what, String(count), median(took).toFixed(0), Math.max(...took).toFixed(0)];
}

/** Bitmaps as the program names them; only the newest records. */
async function addCheckpoints(file: string): Promise<void> {
  const steps = Array.from({ length: checkpointCount }, (_, index) => [
    "--add",
    ...(index + 1 < checkpointCount ? ["--disable"] : []),
    file,
    `fleece:1:${index + 1}:${1_700_000_000_000 + index}:cp${index}`,
  ]);
  for (const step of steps) await qemuImg("bitmap", "-f", "qcow2", ...step);
}

async function residentMib(pid: number): Promise<string> {
  const [, kib] = /^VmRSS:\s+(\d+) kB/m.exec(await readFile(`/proc/${pid}/status`, "utf8")) ?? [];
  return (Number(kib) / 1024).toFixed(1);
}
