import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const root = fileURLToPath(new URL("..", import.meta.url));
/** The workspace package is tested from its sources, not from an earlier build. */
const conditions = ["source", "node", "import", "module", "default"];

/**
 * Two projects. `unit` needs nothing but Node; `qemu` starts real QEMU processes and gets long deadlines,
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
        test: { name: "unit", include: ["test/unit/**/*.test.ts"], testTimeout: 30_000 },
      },
      {
        extends: true,
        test: {
          name: "qemu",
          include: ["test/qemu/**/*.test.ts"],
          testTimeout: 300_000,
          hookTimeout: 120_000,
          maxWorkers: 2,
          // Vitest wants projects with their own worker limits to run one after the other.
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
