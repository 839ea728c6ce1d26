import { mkdir, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe, it } from "vitest";
import { CALLERS_DIRECTORY, killAtEveryStep, type Scenario } from "./support/kill-matrix.js";
import type { Scene } from "./support/scene.js";
import { sampled } from "../support/sample.js";

let snapshots = 0;

/** Of all disks, with a checkpoint of the same name. */
function creation(): string[] {
  const name = `s${snapshots++}`;
  return ["block-snapshot", "create", "vm", "--name", name, `--checkpoint=${name}`, "--lease", "1h"];
}

async function create(scene: Scene): Promise<string> {
  const command = creation();
  await scene.at.json(...command);
  return command[4] ?? "";
}

/** The changes since the first backup, whose checkpoint is the oldest. */
async function exporting(scene: Scene): Promise<string[]> {
  const [since = ""] = await scene.checkpoints();
  return ["export", "start", "vm", "--snapshot", await create(scene), "--since", since];
}

const MIB = 1024 * 1024;

/** With scratch files of the caller's choice. */
async function creationFromXml(scene: Scene): Promise<string[]> {
  const directory = scene.at.directory.file(CALLERS_DIRECTORY);
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const name = `s${snapshots++}`;
  const disks = scene.targets.map(
    (target) => `<disk name='${target}'><scratch file='${directory}/${target}'/></disk>`,
  );
  const document = scene.at.directory.file("snapshot.xml");
  await writeFile(
    document,
    `<domainblocksnapshot><name>${name}</name>${disks.join("")}</domainblocksnapshot>`,
  );
  return ["block-snapshot", "create", "vm", "--xml", document];
}

const ON_RUNNING: readonly Scenario[] = [
  { name: "block-snapshot create", disks: 2, prepare: () => Promise.resolve(creation()) },
  {
    name: "block-snapshot renew",
    disks: 1,
    prepare: async (scene) => ["block-snapshot", "renew", "vm", await create(scene)],
  },
  {
    name: "block-snapshot delete",
    disks: 2,
    prepare: async (scene) => ["block-snapshot", "delete", "vm", await create(scene)],
  },
  {
    name: "block-snapshot delete --failed",
    disks: 2,
    prepare: async (scene) => ["block-snapshot", "delete", "vm", await create(scene), "--failed"],
  },
  { name: "export start", disks: 2, prepare: exporting },
  {
    name: "export stop",
    disks: 2,
    prepare: async (scene) => {
      const start = await exporting(scene);
      await scene.at.json(...start);
      return ["export", "stop", "vm", "--snapshot", start[4] ?? ""];
    },
  },
  {
    name: "block-snapshot create, scratch files by XML",
    disks: 2,
    prepare: creationFromXml,
  },
  {
    name: "block-snapshot delete, scratch files by XML",
    disks: 2,
    prepare: async (scene) => {
      await scene.at.json(...(await creationFromXml(scene)));
      return ["block-snapshot", "delete", "vm", `s${snapshots - 1}`];
    },
  },
  { name: "export start, staged", ...{ disks: 2, site: { exports: "staged" } }, prepare: exporting },
  {
    name: "export stop, staged",
    ...{ disks: 2, site: { exports: "staged" } },
    prepare: async (scene) => {
      const start = await exporting(scene);
      await scene.at.json(...start);
      return ["export", "stop", "vm", "--snapshot", start[4] ?? ""];
    },
  },
  {
    name: "watch, end of a broken snapshot",
    ...{ disks: 2, site: { scratch: { limit: "1M" } } },
    script: fileURLToPath(new URL("support/watch-snapshots.mjs", import.meta.url)),
    prepare: async (scene) => {
      const start = await exporting(scene);
      await scene.at.json(...start);
      await scene.write("vda", 0, MIB, 0x99);
      return ["vm"];
    },
  },
  {
    name: "checkpoint delete",
    disks: 2,
    prepare: async (scene) => {
      const name = await create(scene);
      await scene.at.json("block-snapshot", "delete", "vm", name);
      return ["checkpoint", "delete", "vm", name];
    },
  },
];

/** With the snapshot made while the domain is inactive: one made before would be broken by its end. */
const ON_INACTIVE: readonly Scenario[] = [
  { name: "block-snapshot create, inactive domain", ...inactive(() => Promise.resolve(creation())) },
  {
    name: "block-snapshot delete, inactive domain",
    ...inactive(async (scene) => ["block-snapshot", "delete", "vm", await create(scene)]),
  },
  {
    name: "block-snapshot delete --failed, inactive domain",
    ...inactive(async (scene) => ["block-snapshot", "delete", "vm", await create(scene), "--failed"]),
  },
  { name: "export start, inactive domain", ...inactive(exporting) },
  {
    name: "export stop, inactive domain",
    ...inactive(async (scene) => {
      const start = await exporting(scene);
      await scene.at.json(...start);
      return ["export", "stop", "vm", "--snapshot", start[4] ?? ""];
    }),
  },
  {
    name: "checkpoint delete, inactive domain",
    ...inactive(async (scene) => {
      const name = await create(scene);
      await scene.at.json("block-snapshot", "delete", "vm", name);
      return ["checkpoint", "delete", "vm", name];
    }),
  },
];

function inactive(prepare: Scenario["prepare"]): Omit<Scenario, "name"> {
  return {
    disks: 1,
    inactive: true,
    prepare: async (scene) => {
      if (scene.at.vm.running) await scene.at.vm.quit();
      return prepare(scene);
    },
  };
}

describe("kill -9 of the agent", () => {
  it.each(sampled([...ON_RUNNING, ...ON_INACTIVE], 3))(
    "in $name: the guest goes on, and the next command puts all in order",
    async (scenario) => {
      await killAtEveryStep(scenario);
    },
  );
});
