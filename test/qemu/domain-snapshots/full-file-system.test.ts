import { execFile } from "node:child_process";
import { rm, statfs } from "node:fs/promises";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import type { ServiceContext } from "../../../src/services/context.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { ALL_FAULTS } from "../../support/sample.js";
import { printFigure } from "../../faults/support/figures.js";
import { endMachines } from "../../support/machines-of.js";
import { Scene } from "./scene.js";
import { statusAt } from "./support/counter-site.js";
import { expectSound, expectStable, type Operation, OPERATIONS } from "./support/operations.js";
import { TARGETS } from "./support/scene-model.js";

const run = promisify(execFile);
const KIB = 1024;

/** What is free when the operation begins, one run after the other, until one succeeds. */
const FREE_BYTES = [0, 16, 64, 128, 192, 256, 512, 1024, 2048, 4096, 8192].map((kib) => kib * KIB);
/** Of `npm test`. */
const SAMPLE = { operation: "delete of three, running domain", freeBytes: [64 * KIB] };

/** Records of the journal that could not be removed at once, and the like; no content. */
const SLACK_BYTES = 96 * KIB;

/** Everything of a domain on a file system of its own: images, overlays, memory, state. Mounting needs root. */
class SmallSite implements AsyncDisposable {
  readonly scene: Scene;
  readonly #ballast: string;

  private constructor(scene: Scene) {
    this.scene = scene;
    this.#ballast = scene.directory.file("ballast");
  }

  static async create(running: boolean): Promise<SmallSite> {
    const scene = await Scene.create({
      running,
      prepare: async ({ path }) => {
        await run("mount", ["-t", "tmpfs", "-o", "size=128m,mode=0700", "tmpfs", path]);
      },
    });
    return new SmallSite(scene);
  }

  async freeBytes(): Promise<number> {
    const { bavail, bsize } = await statfs(this.scene.directory.path);
    return bavail * bsize;
  }

  async leave(bytes: number): Promise<void> {
    const length = String((await this.freeBytes()) - bytes);
    await run("fallocate", ["--length", length, this.#ballast]);
  }

  async makeSpace(): Promise<void> {
    await rm(this.#ballast);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endMachines(this.scene.directory.path);
    await run("umount", ["--lazy", this.scene.directory.path]);
    await this.scene[Symbol.asyncDispose]();
  }
}

/** Creations ask for room first, which is right but not what is tried here. */
function trusting(context: ServiceContext): ServiceContext {
  const { snapshotFiles, internals } = context;
  return {
    ...context,
    internals: {
      open: async (...args) => {
        const images = await internals.open(...args);
        const disks = images.disks.bind(images);
        images.disks = async (signal) => (await disks(signal)).map(({ freeBytes: _, ...disk }) => disk);
        return images;
      },
    },
    snapshotFiles: {
      ...snapshotFiles,
      place: async (path) => {
        const place = await snapshotFiles.place(path);
        return place === undefined ? undefined : { ...place, freeBytes: 2 ** 40 };
      },
    },
  };
}

/** True if there was room enough. */
async function attempt(operation: Operation, freeBytes: number): Promise<boolean> {
  await using site = await SmallSite.create(operation.running);
  const { scene } = site;
  await operation.prepare(scene);
  // The guest can write here without any room.
  for (const target of TARGETS) await scene.write(target, 0, 2, 70);
  await site.leave(freeBytes);
  const freeBefore = await site.freeBytes();
  const [outcome] = await Promise.allSettled([operation.run(trusting(scene.context), scene)]);
  expectStable(outcome);
  const isThrough = outcome.status === "fulfilled";
  // Of memory in an image QEMU does not say more.
  const words = /^NO_SPACE|Error while writing VM state/;
  if (!isThrough) expect(codeAndWords(outcome.reason)).toMatch(words);
  const { running } = operation;
  if (running) expect(await statusAt(scene.directory.file("vm.qmp"))).toBe("running");
  if (!isThrough && !(await operation.isDone(scene))) {
    if (running) for (const target of TARGETS) await scene.write(target, 0, 2, 71);
    // QEMU leaves in images what it has written of the memory, which is why a creation asks for room first, and what it has merged.
    const mayCost = /internal|delete/.test(operation.name) ? freeBytes : SLACK_BYTES;
    expect(freeBefore - (await site.freeBytes()), "bytes that the failure has cost").toBeLessThanOrEqual(
      mayCost,
    );
  }
  await site.makeSpace();
  // The storage daemon of an inactive domain cannot store the lower layer's bitmaps either: the next backup compares.
  await expectSound(operation, scene, running ? "exact" : "lost");
  return isThrough;
}

function codeAndWords(error: unknown): string {
  return error instanceof FleeceError ? `${error.code} ${error.message}` : String(error);
}

const mayMount = process.getuid?.() === 0;

describe.runIf(mayMount)("A file system that becomes full in the midst", () => {
  const operations = OPERATIONS.filter(({ name }) => ALL_FAULTS || name === SAMPLE.operation);
  it.each(operations)("leaves the guest as it was: $name", async (operation) => {
    let failures = 0;
    for (const freeBytes of ALL_FAULTS ? FREE_BYTES : SAMPLE.freeBytes) {
      if (await attempt(operation, freeBytes)) break;
      failures++;
    }
    expect(failures).toBeGreaterThan(0);
    printFigure(`full file system: ${operation.name}`, "more free space each time", failures);
  });

  it("is known before an internal snapshot is begun: what is written of memory would stay in the image", async () => {
    await using site = await SmallSite.create(true);
    const { context } = site.scene;
    await site.leave(64 * KIB * KIB);
    const freeBefore = await site.freeBytes();
    await expect(
      createDomainSnapshot(context, { domain: "vm", name: "a", kind: "internal" }),
    ).rejects.toMatchObject({
      code: "NO_SPACE",
      message: expect.stringContaining("96 MiB free for the memory in") as string,
    });
    expect(freeBefore - (await site.freeBytes())).toBeLessThanOrEqual(SLACK_BYTES);
  });
});
