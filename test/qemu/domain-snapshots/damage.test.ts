import { readdir, readFile, rename, truncate, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { describe, expect, it } from "vitest";
import type { ServiceContext } from "../../../src/services/context.js";
import { cloneDomainSnapshot } from "../../../src/services/domain-snapshots/clone.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { Scene } from "./scene.js";
import { ALL_FAULTS } from "../../support/sample.js";

const domain = "vm";

type Action = (context: ServiceContext, scene: Scene) => Promise<unknown>;

const revert: Action = (context) => revertDomainSnapshot(context, { domain, name: "s" });
const clone: Action = (context, { directory }) =>
  cloneDomainSnapshot(context, { domain, name: "s", directory: directory.file("clone") });
const remove: Action = (context) => deleteDomainSnapshot(context, { domain, name: "s" });
const create: Action = (context) => createDomainSnapshot(context, { domain, name: "t" });
const all = { revert, clone, remove, create };

interface Damage {
  readonly what: string;
  /** Of which file: it is put back at the end. */
  readonly file: (scene: Scene) => Promise<string>;
  readonly damage: (file: string) => Promise<void>;
  /** Which actions fail, and with which code. */
  readonly fails: Partial<Record<keyof typeof all, string>>;
}

const documentOf = (scene: Scene): Promise<string> =>
  Promise.resolve(scene.directory.file("state/domain-snapshots/vm/snapshots.json"));
const memoryOf = (scene: Scene): Promise<string> =>
  Promise.resolve(scene.directory.file("state/domain-snapshots/vm/s.save"));
const baseOf = (scene: Scene): Promise<string> => Promise.resolve(scene.directory.file("vda.img"));
const overlayOf = async (scene: Scene): Promise<string> => {
  const { snapshots } = await scene.document();
  return snapshots.find(({ name }) => name === "s")?.disks[0]?.file ?? "";
};

const everything = { revert: "DAMAGED", clone: "DAMAGED", remove: "DAMAGED", create: "DAMAGED" };
const gone = (file: string): Promise<void> => rename(file, `${file}.away`);

const DAMAGES: readonly Damage[] = [
  {
    what: "a document that ends early",
    file: documentOf,
    damage: async (file) => truncate(file, 100),
    fails: everything,
  },
  {
    what: "a document that is something else",
    file: documentOf,
    damage: (file) => writeFile(file, "\0garbage"),
    fails: everything,
  },
  {
    what: "a document of a newer version",
    file: documentOf,
    damage: async (file) => {
      const text = await readFile(file, "utf8");
      await writeFile(file, text.replace('"schemaVersion": 1', '"schemaVersion": 2'));
      expect(await readFile(file, "utf8")).not.toBe(text);
    },
    fails: everything,
  },
  {
    what: "memory that ends early",
    file: memoryOf,
    damage: (file) => truncate(file, 5000),
    fails: { revert: "DAMAGED", clone: "DAMAGED" },
  },
  {
    what: "memory with one other byte",
    file: memoryOf,
    damage: async (file) => {
      const content = await readFile(file);
      content[content.length >> 1] = (content[content.length >> 1] ?? 0) ^ 1;
      await writeFile(file, content);
    },
    fails: { revert: "DAMAGED", clone: "DAMAGED" },
  },
  { what: "no memory", file: memoryOf, damage: gone, fails: { revert: "DAMAGED", clone: "DAMAGED" } },
  {
    what: "no file of the snapshot",
    file: overlayOf,
    damage: gone,
    fails: { revert: "DAMAGED", clone: "DAMAGED" },
  },
  {
    what: "no file below that of the snapshot",
    file: baseOf,
    damage: gone,
    fails: { revert: "DAMAGED", clone: "DAMAGED" },
  },
];

/** All of them, or one of each kind: see test/faults/README.md. */
const SAMPLE = [
  "a document of a newer version",
  "memory with one other byte",
  "no file below that of the snapshot",
];
const tried = DAMAGES.filter(({ what }) => ALL_FAULTS || SAMPLE.includes(what));

/** Names of files, and of the processes of the domain, that an action without effect leaves as they are. */
async function stateOf(scene: Scene): Promise<unknown> {
  const files = (await readdir(scene.directory.path, { recursive: true })).filter(
    (name) => !/lock$|^run|operations/.test(name),
  );
  const text = await readFile(await documentOf(scene), "utf8");
  return { files: files.toSorted(), document: await scene.document().catch(() => text) };
}

describe("A domain snapshot with damage", () => {
  it.each(tried)("refuses what needs it, and nothing changes: $what", async ({ file, damage, fails }) => {
    const scene = untilTestEnds(await Scene.create({ running: true }));
    const { context } = scene;
    await scene.write("vda", 0, 4, 1);
    await scene.snapshot("first");
    await createDomainSnapshot(context, { domain, name: "s" });
    scene.model.remember("s");
    await scene.write("vda", 0, 4, 2);
    const damaged = await file(scene);
    const sound = await readFile(damaged);
    await damage(damaged);
    const before = await stateOf(scene);
    for (const [name, code] of Object.entries(fails)) {
      await expect(all[name as keyof typeof all](context, scene), name).rejects.toMatchObject({ code });
      expect(await stateOf(scene), name).toEqual(before);
    }
    expect(((await scene.vm?.qmp("query-status")) as { status: string }).status).toBe("running");
    // QEMU has the file open that is away.
    if ((await readdir(dirname(damaged))).includes(`${damaged.split("/").at(-1) ?? ""}.away`)) {
      await rename(`${damaged}.away`, damaged);
    } else {
      await writeFile(damaged, sound);
    }
    await scene.check();
    await remove(context, scene);
    scene.model.forget("s");
    await scene.check();
  });
});
