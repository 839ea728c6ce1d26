/**
 * Runs every test, or what the arguments for vitest select: `node config/run-tests.mjs [ARGUMENTS]`.
 * The last line is `N passed, N failed`, with `, N skipped` when there are any.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const directory = mkdtempSync(join(tmpdir(), "fleece-tests-"));
const reportPath = join(directory, "report.json");
let exitCode = 1;
let report;
try {
  const args = [
    join(root, "node_modules", "vitest", "vitest.mjs"),
    ...["run", "--config", join(root, "config", "vitest.config.ts")],
    ...["--reporter=default", "--reporter=json", `--outputFile.json=${reportPath}`],
    ...process.argv.slice(2),
  ];
  exitCode = spawnSync(process.execPath, args, { cwd: root, stdio: "inherit" }).status ?? 1;
  report = readReport();
} finally {
  rmSync(directory, { recursive: true, force: true });
}

const { passed, failed, skipped } = count(report, exitCode);
process.stdout.write(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}\n`);
process.exitCode = failed > 0 ? 1 : 0;

/** Without a report vitest did not get as far as running tests. */
function readReport() {
  try {
    return JSON.parse(readFileSync(reportPath, "utf8"));
  } catch {
    return undefined;
  }
}

/**
 * A file that could not be loaded has no tests that could fail, so it counts as one failure; so does a run that
 * fails for any other reason (an unhandled error, a crash), and a run without a test.
 */
function count(report, exitCode) {
  const tests = (report?.testResults ?? []).flatMap((file) => file.assertionResults);
  const unloaded = (report?.testResults ?? []).filter(
    (file) => file.status === "failed" && !file.assertionResults.some((test) => test.status === "failed"),
  );
  const passed = tests.filter((test) => test.status === "passed").length;
  const failed = tests.filter((test) => test.status === "failed").length + unloaded.length;
  const skipped = tests.length - passed - (failed - unloaded.length);
  const hiddenFailure = failed === 0 && (exitCode !== 0 || passed === 0);
  return { passed, failed: hiddenFailure ? 1 : failed, skipped };
}
