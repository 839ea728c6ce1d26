import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { BoundProcess } from "../../support/bound-process.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { someConfig } from "./run-in-process.js";

const main = fileURLToPath(new URL("../../../src/cli/main.ts", import.meta.url));

/** The command as a process of its own, from the sources. */
async function spawnFleece(args: readonly string[], options: { readonly stdoutPath?: string } = {}) {
  const command = ["--import", "tsx", "--conditions=source", main, ...args];
  const started = untilTestEnds(
    await BoundProcess.start(process.execPath, command, { env: process.env, ...options }),
  );
  const { exitCode } = await started.ended;
  return { exitCode, stdout: started.stdout, stderr: started.stderr };
}

describe("the process of a command", () => {
  it("ends with the exit code of the failure and no stack", async () => {
    const { exitCode, stdout, stderr } = await spawnFleece([
      "domain",
      "list",
      "--embedded",
      "--config",
      "/nowhere",
    ]);
    expect(stderr).toBe(
      "fleece: Cannot read the configuration /nowhere: it does not exist (CONFIG_NOT_FOUND)\n",
    );
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: "" });
  });

  it("ends by itself after a command on the real agent", async () => {
    const args = ["domain", "list", "--embedded", "--json", "--config", await someConfig()];
    const { exitCode, stdout, stderr } = await spawnFleece(args);
    expect(stderr).toBe("");
    expect(JSON.parse(stdout)).toMatchObject({ domains: [{ name: "vm", state: "UNKNOWN" }] });
    expect(exitCode).toBe(0);
  });

  it("fails when the answer cannot be written", async () => {
    const { exitCode, stderr } = await spawnFleece(["--help"], { stdoutPath: "/dev/full" });
    expect(stderr).toContain("fleece: Cannot write the answer: ENOSPC");
    expect(exitCode).toBe(1);
  });
});
