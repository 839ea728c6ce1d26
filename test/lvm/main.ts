import { fileURLToPath } from "node:url";
import { runInGuest } from "./guest.js";

/** `npm run test:lvm`: the tests that need LVM, in a guest that has it. Arguments go to vitest. */
const root = fileURLToPath(new URL("../..", import.meta.url));
const tests = "test/qemu/domain-snapshots/lvm.test.ts";
/** Two emulated CPUs deep, under load. */
const SLOW = "--testTimeout=1800000";
const passed = ["FLEECE_FAULTS"].flatMap((name) => {
  const value = process.env[name];
  return value === undefined ? [] : [`${name}=${quoted(value)}`];
});
const vitest = [
  "node",
  "node_modules/vitest/vitest.mjs",
  "run",
  "--config",
  "config/vitest.config.ts",
  "--reporter=verbose",
  SLOW,
  tests,
];
process.exitCode = await runInGuest({
  command: [
    "vgcreate -q fltest /dev/vda >/dev/null || exit 1",
    `cd ${quoted(root)}`,
    ["FLEECE_LVM=fltest NO_COLOR=1", ...passed, ...[...vitest, ...process.argv.slice(2)].map(quoted)].join(
      " ",
    ),
  ].join("\n"),
  onOutput: (text) => process.stdout.write(text),
  timeoutMs: 3_600_000,
});

function quoted(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
