import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { untilTestEnds } from "./lifetime.js";

const run = promisify(execFile);

/** The volume group that tests may fill, if there is one: `npm run test:lvm` names it. */
export const testGroup = process.env["FLEECE_LVM"];

/** What tests without a volume group are skipped with. */
export const MISSING_LVM = "no volume group to test with: `npm run test:lvm` has one";

export async function lvm(program: string, ...args: string[]): Promise<string> {
  return (await run(program, args)).stdout.trim();
}

let made = 0;

/** An empty volume and its device, until the test ends; whatever is based on it goes with it. */
export async function logicalVolume(
  group: string,
  kind: "thin" | "classic",
  mebibytes: number,
): Promise<{ readonly name: string; readonly path: string }> {
  const name = `v${process.pid}-${made++}`;
  const named = ["--yes", "--wipesignatures", "n", "--name", name];
  if (kind === "classic") {
    await lvm("lvcreate", ...named, "--size", `${mebibytes}m`, group);
  } else {
    const pool = `${name}-pool`;
    await lvm(
      "lvcreate",
      "--yes",
      "--type",
      "thin-pool",
      "--size",
      `${4 * mebibytes}m`,
      "--name",
      pool,
      group,
    );
    removedAtEnd(`${group}/${pool}`);
    await lvm("lvcreate", ...named, "--virtualsize", `${mebibytes}m`, "--thinpool", pool, group);
  }
  if (kind === "classic") {
    removedAtEnd(`${group}/${name}`);
  }
  return { name, path: `/dev/${group}/${name}` };
}

function removedAtEnd(volume: string): void {
  untilTestEnds({
    [Symbol.asyncDispose]: async () => {
      await lvm("lvremove", "--yes", volume);
    },
  });
}

/** Names of the snapshots that have a tag of ours. */
export async function taggedVolumes(group: string): Promise<string[]> {
  const text = await lvm("lvs", "--noheadings", "--options", "lv_name,lv_tags", group);
  return text
    .split("\n")
    .flatMap((line) => /^\s*(\S+)\s+fleece:/.exec(line)?.[1] ?? [])
    .toSorted();
}
