import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const root = fileURLToPath(new URL("..", import.meta.url));
/** The workspace package is tested from its sources, not from an earlier build. */
const conditions = ["source", "node", "import", "module", "default"];

/**
 * Three projects. `unit` needs nothing but Node; `qemu` and `faults` start real QEMU processes and get long deadlines,
 * which exist to end a hung test, not to measure anything.
 */
export default defineConfig({
  root,
  resolve: { conditions },
  ssr: { resolve: { conditions, externalConditions: conditions } },
  test: {
    projects: [
      {
        extends: true,
        test: { name: "unit", include: ["test/unit/**/*.test.ts"], testTimeout: 120_000 },
      },
      {
        extends: true,
        test: {
          name: "qemu",
          include: ["test/qemu/**/*.test.ts"],
          // With every fault, too.
          testTimeout: process.env["FLEECE_FAULTS"] === "all" ? 3_600_000 : 300_000,
          hookTimeout: 120_000,
          // One more than processors that are sure to be there: many tests wait for leases, deadlines and processes to end.
          maxWorkers: 3,
          // Vitest wants projects of different worker limits to run one after the other. That of `unit` is its own; the two others
          // share theirs and one queue, so that no worker waits in between for the last file of this one.
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: {
          name: "faults",
          include: ["test/faults/**/*.test.ts"],
          // Every fault, or a sample: test/faults/README.md.
          testTimeout: process.env["FLEECE_FAULTS"] === "all" ? 3_600_000 : 300_000,
          hookTimeout: 120_000,
          maxWorkers: 3,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
