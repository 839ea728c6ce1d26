import { describe, it } from "vitest";
import { killAtEveryStep, type Scenario } from "./support/kill-matrix.js";
import type { Scene } from "./support/scene.js";
import { sampled } from "../support/sample.js";

const BACKUP = ["backup", "run", "vm"];

const SCENARIOS: readonly Scenario[] = [
  { name: "backup run, full", disks: 1, prepare: () => Promise.resolve([...BACKUP, "--full"]) },
  { name: "backup run, incremental", disks: 1, prepare: () => Promise.resolve(BACKUP) },
  { name: "backup run, incremental of two disks", disks: 2, prepare: () => Promise.resolve(BACKUP) },
  {
    name: "pushed backup run, full",
    ...{ disks: 1, site: { exports: "staged" } },
    prepare: () => Promise.resolve([...BACKUP, "--full"]),
  },
  {
    name: "pushed backup run, incremental of two disks",
    ...{ disks: 2, site: { exports: "staged" } },
    prepare: () => Promise.resolve(BACKUP),
  },
  {
    name: "backup run, full, inactive domain",
    ...{ disks: 1, inactive: true },
    prepare: () => Promise.resolve([...BACKUP, "--full"]),
  },
  {
    name: "backup run, incremental of two disks, inactive domain",
    ...{ disks: 2, inactive: true },
    prepare: () => Promise.resolve(BACKUP),
  },
  {
    name: "backup delete",
    disks: 1,
    prepare: async (scene) => ["backup", "delete", (await scene.backUp()).id],
  },
  { name: "backup restore", disks: 2, prepare: (scene) => restore(scene) },
  {
    name: "backup serve",
    disks: 1,
    prepare: async (scene) => ["backup", "serve", await newest(scene), "--json"],
    endsOnTerm: /\}\s*$/,
  },
];

describe("kill -9 of the agent", () => {
  it.each(sampled(SCENARIOS, 3))(
    "in $name: the guest goes on, and the next command puts all in order",
    async (scenario) => {
      await killAtEveryStep(scenario);
    },
  );
});

let restores = 0;

async function restore(scene: Scene): Promise<readonly string[]> {
  const to = scene.at.directory.file(`restored-${restores++}`);
  return ["backup", "restore", await newest(scene), "--to", to];
}

async function newest(scene: Scene): Promise<string> {
  return (await scene.expectSound()).at(-1) ?? "";
}
