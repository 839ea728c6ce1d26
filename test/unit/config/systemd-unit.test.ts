import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { configSchema } from "../../../src/model/config.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const exec = promisify(execFile);
const UNIT = fileURLToPath(new URL("../../../config/systemd/fleece.service", import.meta.url));
/** Of 10; without any hardening it is 9.6. */
const MOST_EXPOSURE = "32";

/** The unit with a program that is there, under its own name. */
async function unitFile(): Promise<string> {
  const directory = await temporaryDirectory();
  const path = directory.file("fleece.service");
  await writeFile(path, (await readFile(UNIT, "utf8")).replace("/usr/local/bin/fleece", process.execPath));
  return path;
}

async function setting(name: string): Promise<string | undefined> {
  return new RegExp(`^${name}=(.*)$`, "m").exec(await readFile(UNIT, "utf8"))?.[1];
}

describe("fleece.service", () => {
  it("is understood by systemd, without a complaint", async () => {
    expect(await exec("systemd-analyze", ["verify", "--man=no", await unitFile()])).toEqual({
      stdout: "",
      stderr: "",
    });
  });

  it("exposes little", async () => {
    const args = [
      "security",
      "--offline=yes",
      "--no-pager",
      `--threshold=${MOST_EXPOSURE}`,
      await unitFile(),
    ];
    // It fails above the threshold.
    expect((await exec("systemd-analyze", args)).stdout).toMatch(/Overall exposure level/);
  });

  it("gives calls their grace period, however long that is, before it kills the agent", async () => {
    const [, minutes] = /^(\d+)min$/.exec((await setting("TimeoutStopSec")) ?? "") ?? [];
    const { shutdownGrace } = configSchema.shape.api.unwrap().shape;
    expect(shutdownGrace.safeParse("10m").success).toBe(true);
    expect(shutdownGrace.safeParse("10.1m").success).toBe(false);
    expect(Number(minutes)).toBeGreaterThan(10);
  });

  it("lets the guests' guard, and the daemons and sockets of open block snapshots, outlive the agent", async () => {
    expect(await setting("KillMode")).toBe("process");
    expect(await setting("RuntimeDirectoryPreserve")).toBe("yes");
    // A private /tmp goes with the agent, and hides sockets that are there.
    expect(await setting("PrivateTmp")).toBe("no");
  });
});
