import { describe, expect, it } from "vitest";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import { deleteBackup, findBackup, findReadable } from "../../../src/services/backup-catalog.js";
import { copyBackups, type Copying, type CopyRequest } from "../../../src/services/backup-copy.js";
import { runBackup } from "../../../src/services/backup-run.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { pruneDomain } from "../../../src/services/prune.js";
import { verifyAndRemember } from "../../../src/services/verifications.js";
import { isFleeceError } from "../../../src/shared/errors.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { FakeRepository } from "../../support/fake-repository.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const BLOCKS = 6;
const DISKS = ["vda", "vdb"].map((target) => ({ target, sizeBytes: BLOCKS * BLOCK_SIZE }));

const STEPS = 30;
/** Of the random walks; `npm run test:model` goes more. */
const SEEDS = Array.from({ length: Number(process.env["FLEECE_MODEL_RUNS"] ?? 1) }, (_, index) => index + 9);

/** A domain with two repositories, and what its disks held at each backup. */
class Copies {
  readonly world: FakeWorld;
  readonly second: FakeRepository;
  readonly context: ServiceContext;
  readonly moments = new Map<string, ReadonlyMap<string, Buffer>>();

  constructor(path: string) {
    this.world = new FakeWorld(path, { disks: DISKS });
    this.second = new FakeRepository(this.world.domain, "second");
    const { context } = this.world.process();
    const repositories = new Map([...context.repositories, ["second", this.second]]);
    const retention = (repository: string) => (repository === "second" ? this.world.retention : undefined);
    this.context = { ...context, repositories, retention };
  }

  async backUp(repository = "default"): Promise<string> {
    const { id } = await runBackup(this.context, { domain: "vm", repository });
    const disks = [...this.world.domain.disks].map(
      ([target, { content }]) => [target, Buffer.from(content)] as const,
    );
    this.moments.set(id, new Map(disks));
    return id;
  }

  copy(request: Partial<CopyRequest> = {}): Promise<Copying> {
    return copyBackups(this.context, { domain: "vm", to: "second", wish: { kind: "newer" }, ...request });
  }

  async ids(repository = "second"): Promise<readonly string[]> {
    return (
      (await this.context.repositories.get(repository)?.list("vm"))?.map(({ id }) => id).toSorted() ?? []
    );
  }

  async expectTrue(): Promise<void> {
    for (const repository of [this.world.repository, this.second]) {
      for (const { id } of await repository.list("vm")) {
        for (const [target, content] of this.moments.get(id) ?? []) {
          expect(repository.content(id, target).equals(content), `${repository.name}: ${id} ${target}`).toBe(
            true,
          );
        }
      }
    }
    expect([...this.world.domain.host.directories]).toEqual([]);
    expect(await this.world.traces()).toMatchObject({ journal: [] });
  }

  checkpoints(): readonly string[] {
    return this.world.domain
      .disk("vda")
      .state(true)
      .checkpoints.map(({ name }) => name);
  }
}

async function start(): Promise<Copies> {
  return new Copies((await temporaryDirectory()).path);
}

/** A full and incrementals, `count` in all. */
async function chain(count: number): Promise<Copies & { readonly made: readonly string[] }> {
  const at = await start();
  const made: string[] = [];
  for (let block = 0; block < count; block++) {
    at.world.domain.write("vda", block * BLOCK_SIZE, 512, block + 1);
    made.push(await at.backUp());
  }
  return Object.assign(at, { made });
}

describe("copyBackups", () => {
  it("does not bring back what the second repository's retention has let go, unless it is asked for", async () => {
    const at = await chain(4);
    const { copies } = await at.copy();
    expect(copies.map(({ id }) => id)).toEqual(at.made);
    at.world.retention = { last: 1, timeZone: "UTC" };
    await pruneDomain(at.context, "vm", { repository: "second" });
    expect(await at.ids()).toEqual(at.made.slice(3));
    expect((await at.copy()).copies).toEqual([]);
    const next = await at.backUp();
    expect((await at.copy()).copies).toMatchObject([{ id: next, manifest: { parent: at.made[3] } }]);
    await at.copy({ wish: { kind: "ids", ids: [at.made[1] ?? ""] } });
    expect(await at.ids()).toEqual([at.made[1], at.made[3], next]);
    await at.expectTrue();
  });

  it.each(SEEDS)(
    "gives every copy the content of its moment, whatever was merged and let go: %i",
    async (first) => {
      const at = await start();
      let seed = first;
      const random = (below: number): number => {
        seed = (seed * 48_271) % 2_147_483_647;
        return seed % below;
      };
      const anyOf = (ids: readonly string[]): string => ids[random(ids.length)] ?? "";
      for (let step = 0; step < STEPS; step++) {
        const { domain } = at.world;
        const target = anyOf(["vda", "vdb"]);
        domain.write(target, random(BLOCKS) * BLOCK_SIZE, BLOCK_SIZE, random(3));
        const what = random(8);
        if (what < 3) await at.backUp(what === 0 && step % 3 === 0 ? "second" : "default");
        else if (what < 5) await at.copy({ wish: { kind: what === 3 ? "newer" : "latest" } });
        else if (what === 5) {
          const ids = await at.ids("default");
          if (ids.length > 0) await at.copy({ wish: { kind: "ids", ids: [anyOf(ids)] } });
        } else {
          const repository = anyOf(["default", "second"]);
          const ids = await at.ids(repository);
          // Several may be based on one.
          if (ids.length > 2) {
            await deleteBackup(at.context, anyOf(ids), { repository }).catch((error: unknown) => {
              if (!isFleeceError(error, "BACKUP_HAS_CHILDREN")) throw error;
            });
          }
        }
        await at.expectTrue();
      }
      expect(at.moments.size).toBeGreaterThan(3);
    },
  );

  it("keeps the checkpoint of the newest copy in the domain, and no other that originals do not need", async () => {
    const at = await chain(3);
    await at.copy();
    for (const id of at.made.slice(1)) await deleteBackup(at.context, id, { repository: "default" });
    expect(at.checkpoints()).toEqual([at.made[0], at.made[2]]);
    // It is the only thing that the second repository can go on from without reading all.
    const own = await at.backUp("second");
    const { entry } = await findReadable(at.context, own);
    expect(entry.manifest).toMatchObject({
      parent: at.made[2],
      disks: [{ mode: "changes" }, { mode: "changes" }],
    });
    await pruneDomain(at.context, "vm");
    expect(at.checkpoints()).toEqual([at.made[0], own]);
    await at.expectTrue();
  });

  it("leaves a damaged original out, copies the others, and bases nothing on it", async () => {
    const at = await chain(1);
    at.world.repository.isRotten = (id) => id === at.made[0];
    await expect(at.copy()).rejects.toMatchObject({
      code: "DAMAGED",
      message: expect.stringContaining(`${at.made[0] ?? ""} in repository default is damaged`) as string,
    });
    expect(await at.ids()).toEqual([]);
    const full = await at.backUp();
    await expect(at.copy()).rejects.toMatchObject({ code: "DAMAGED" });
    expect(await at.ids()).toEqual([full]);
    expect((await findBackup(at.context, full)).entry.manifest).toMatchObject({ level: "full" });
    expect((await at.copy()).copies).toEqual([]);
  });

  it("takes damage of a copy for that of the copy alone", async () => {
    const at = await chain(1);
    await at.copy();
    const [id = ""] = at.made;
    at.second.isRotten = () => true;
    const damaged = verifyAndRemember(at.context, id, { repository: "second" });
    await expect(damaged).rejects.toMatchObject({ code: "DAMAGED" });
    at.second.isRotten = () => false;
    const next = await at.backUp();
    expect((await findBackup(at.context, next)).entry.manifest).toMatchObject({ parent: id });
    // Nor is a copy based on it.
    expect((await at.copy()).copies).toMatchObject([{ id: next, manifest: { level: "full" } }]);
    await at.expectTrue();
  });

  it("is refused with a code when the second repository is full, busy, or the first itself", async () => {
    const at = await chain(1);
    const [id = ""] = at.made;
    at.second.reserveBytes = at.world.domain.host.freeBytes;
    const free = at.world.domain.host.freeBytes;
    at.world.domain.host.freeBytes = 0;
    await expect(at.copy()).rejects.toMatchObject({ code: "NO_SPACE" });
    at.world.domain.host.freeBytes = free;
    const lock = await at.second.lock("vm");
    await expect(at.copy()).rejects.toMatchObject({ code: "REPOSITORY_BUSY" });
    await lock.release();
    await expect(at.copy({ to: "default" })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    const other = { wish: { kind: "ids", ids: [`${id}x`] } } as const;
    await expect(at.copy(other)).rejects.toMatchObject({ code: "BACKUP_NOT_FOUND" });
    await expect(at.copy({ domain: "other" })).rejects.toMatchObject({ code: "DOMAIN_NOT_FOUND" });
    expect(await at.ids()).toEqual([]);
    await at.expectTrue();
    await at.copy();
    await expect(deleteBackup(at.context, id)).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  });
});
