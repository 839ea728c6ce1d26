import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { loadConfig, startAgent } from "../../src/agent.js";
import type { CreateDomainSnapshotRequest, DomainSnapshot } from "../../src/model/domain-snapshot.js";
import type { ServiceContext } from "../../src/services/context.js";
import { createDomainSnapshot } from "../../src/services/domain-snapshots/create.js";
import { deleteDomainSnapshot } from "../../src/services/domain-snapshots/delete.js";
import { revertDomainSnapshot } from "../../src/services/domain-snapshots/revert.js";
import { CounterGuest } from "../guest/counter-guest.js";
import { writeConfig } from "../support/config-file.js";
import { createImage } from "../support/image-tool.js";
import { endMachines } from "../support/machines-of.js";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import type { TestDisk } from "../support/vm-arguments.js";
import { cacheDirectory } from "./support/exports.js";
import { format, median } from "./support/figures.js";

/**
 * `npm run bench:domain-snapshots -- [--rounds 3] [--directory DIR]`: what domain snapshots of a running guest with two disks cost, by
 * the services in this process; medians. How long the guest stood still while one was taken and while it was reverted, and how
 * long each call took: the rest of a creation is the digest of the memory, of a revert its check and the start of QEMU. The
 * deletion is that of the snapshot, whose overlays are the present ones. The guests run under TCG.
 */
const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "3" },
    directory: { type: "string", default: cacheDirectory },
  },
});
const MIB = 2 ** 20;
const DOMAIN = "vm";
const rounds = Number(values.rounds);

/** In MiB; the ballast is random, so that it is saved as it is. */
const GUESTS = [
  { memoryMib: 160, ballastMib: 32 },
  { memoryMib: 1024, ballastMib: 400 },
];
const KINDS: readonly (readonly [string, Pick<CreateDomainSnapshotRequest, "kind" | "live">])[] = [
  ["paused", {}],
  ["live", { live: true }],
  ["internal", { kind: "internal" }],
];

interface Round {
  readonly snapshot: DomainSnapshot;
  readonly createMs: number;
  readonly revertMs: number;
  readonly downtimeMs: number;
  readonly deleteMs: number;
}

async function timed<T>(action: Promise<T>): Promise<[T, number]> {
  const startMs = performance.now();
  return [await action, performance.now() - startMs];
}

async function measure(
  context: ServiceContext,
  guest: CounterGuest,
  request: CreateDomainSnapshotRequest & { readonly name: string },
): Promise<Round> {
  const { domain, name } = request;
  const [snapshot, createMs] = await timed(createDomainSnapshot(context, request));
  await guest.counter.waitTurns(2);
  const [{ keptAs = "", downtimeMs }, revertMs] = await timed(
    revertDomainSnapshot(context, { domain, name }),
  );
  await guest.counter.waitTurns(2);
  await deleteDomainSnapshot(context, { domain, name: keptAs });
  const [, deleteMs] = await timed(deleteDomainSnapshot(context, { domain, name }));
  const mismatches = guest.counter.mismatches();
  if (mismatches.length > 0)
    throw new Error(`RAM and disks were not of one moment: ${mismatches.join("; ")}`);
  return { snapshot, createMs, revertMs, downtimeMs, deleteMs };
}

async function series(memory: (typeof GUESTS)[number]): Promise<string[][]> {
  await using sockets = await TemporaryDirectory.create();
  const work = await mkdtemp(join(values.directory, "domain-snapshots-"));
  try {
    const disks: TestDisk[] = [];
    for (const target of ["vda", "vdb"]) {
      disks.push({ target, path: join(work, `${target}.qcow2`), format: "qcow2" });
      await createImage(join(work, `${target}.qcow2`), 64 * MIB);
    }
    await using guest = await CounterGuest.boot({ directory: sockets.path, name: DOMAIN, disks, ...memory });
    const configPath = await writeConfig(sockets.path, {
      stateDir: join(work, "state"),
      domains: [{ name: DOMAIN, qmp: guest.vm.qmpPath }],
      more: { runtimeDir: sockets.file("run") },
    });
    const ignore = (): void => undefined;
    const log = { debug: ignore, info: ignore, warn: ignore };
    const context = await startAgent(await loadConfig(configPath), log);
    const rows: string[][] = [];
    for (const [what, request] of KINDS) {
      const done: Round[] = [];
      for (let round = 0; round < rounds; round++) {
        done.push(await measure(context, guest, { ...request, domain: DOMAIN, name: `${what}${round}` }));
      }
      const middle = (of: (round: Round) => number): string => median(done.map(of)).toFixed(0);
      rows.push([
        `${memory.memoryMib} MiB, ${what}`,
        middle(({ snapshot }) => snapshot.pausedMs),
        middle(({ createMs }) => createMs),
        middle(({ snapshot }) => (snapshot.memory?.sizeBytes ?? 0) / MIB),
        middle(({ downtimeMs }) => downtimeMs),
        middle(({ revertMs }) => revertMs),
        middle(({ deleteMs }) => deleteMs),
      ]);
    }
    return rows;
  } finally {
    // What a revert starts outlives this process on purpose.
    await endMachines(sockets.path);
    await rm(work, { recursive: true, force: true });
  }
}

await mkdir(values.directory, { recursive: true });
const rows: string[][] = [];
for (const memory of GUESTS) rows.push(...(await series(memory)));
const head = [
  "",
  "pause, ms",
  "creation, ms",
  "memory, MiB",
  "revert: still, ms",
  "revert, ms",
  "deletion, ms",
];
process.stdout.write(
  `${format([head, ...rows])}\nload ${loadavg()
    .map((load) => load.toFixed(1))
    .join(" ")}\n`,
);
