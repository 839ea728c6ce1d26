import { describe, it } from "vitest";
import { killAtEveryStep, type Scenario } from "./support/kill-matrix.js";
import type { Scene } from "./support/scene.js";

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
  it.each([...ON_RUNNING, ...ON_INACTIVE])(
    "in $name: the guest goes on, and the next command puts all in order",
    async (scenario) => {
      await killAtEveryStep(scenario);
    },
  );
});
