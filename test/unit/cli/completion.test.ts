import { execFile } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { SHELLS } from "../../../src/cli/completion-scripts.js";
import { writeConfig } from "../../support/config-file.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { fleece, someConfig } from "./run-in-process.js";

const exec = promisify(execFile);

/** The values, without what they mean. */
async function complete(...words: string[]): Promise<string[]> {
  const { exitCode, stdout, stderr } = await fleece(["complete", "--", ...words]);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
  return stdout
    .split("\n")
    .slice(0, -1)
    .map((line) => line.split("\t")[0] ?? "");
}

describe("fleece complete", () => {
  it("knows the groups and verbs, but not itself", async () => {
    expect(await complete("")).toEqual(expect.arrayContaining(["serve", "backup", "domain", "completion"]));
    expect(await complete("")).not.toContain("complete");
    expect(await complete("ba")).toEqual(["backup"]);
    expect(await complete("backup", "r")).toEqual(["run", "restore"]);
    expect(await complete("--json", "--config", "/c.yaml", "backup", "li")).toEqual(["list"]);
    expect(await complete("completion", "")).toEqual([...SHELLS]);
  });

  it("says what each of them does", async () => {
    const { stdout } = await fleece(["complete", "--", "serv"]);
    expect(stdout).toBe("serve\trun the agent that commands talk to\n");
  });

  it("knows the options of a command and those of all commands", async () => {
    expect(await complete("backup", "run", "vm", "--")).toEqual(
      expect.arrayContaining(["--full", "--quiesce", "--repository", "--help", "--config", "--log-level"]),
    );
    expect(await complete("domain", "list", "--f")).toEqual([]);
    expect((await complete("backup", "run", "--help")).length).toBe(1);
  });

  it("knows the values of options: choices, names of the configuration, files", async () => {
    const config = await someConfig();
    expect(await complete("backup", "list", "--log-level", "de")).toEqual(["debug"]);
    // As bash takes it apart.
    expect(await complete("backup", "list", "--log-level", "=", "de")).toEqual(["debug"]);
    expect(await complete("--config", config, "doctor", "vm", "--repository", "")).toEqual(["default"]);
    expect(await complete("backup", "restore", "b1", "--to", "/tmp/x")).toEqual([":files"]);
    expect(await complete("--config", "")).toEqual([":files"]);
    expect(await complete("block-snapshot", "create", "vm", "--name", "")).toEqual([]);
  });

  it("knows the jobs of the configuration, where one is expected", async () => {
    const { path } = await temporaryDirectory();
    const jobs = [{ name: "nightly", schedule: "@daily", domains: "all" }];
    const config = await writeConfig(path, { domains: [{ name: "vm", qmp: "vm.qmp" }], more: { jobs } });
    expect(await complete("--config", config, "job", "run", "")).toEqual(["nightly"]);
    expect(await complete("--config", config, "job", "history", "n")).toEqual(["nightly"]);
  });

  it("knows the domains of the configuration, where one is expected", async () => {
    const config = await someConfig();
    expect(await complete("--config", config, "backup", "run", "")).toEqual(["vm"]);
    expect(await complete("backup", "run", "--config", config, "--full", "v")).toEqual(["vm"]);
    expect(await complete("--config", config, "backup", "run", "vm", "")).toEqual([]);
    expect(await complete("--config", "/nowhere.yaml", "backup", "run", "")).toEqual([]);
  });
});

const onPath = (command: string): boolean =>
  (process.env["PATH"] ?? "").split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, command), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });

/** A directory with a `fleece` that tells how it was called, the script for the shell, and file names to complete. */
async function shellPlace(shell: string, answer: string) {
  const { path } = await temporaryDirectory();
  const bin = join(path, "bin");
  await mkdir(bin);
  await writeFile(
    join(bin, "fleece"),
    `#!/bin/sh\nfor word in "$@"; do printf '<%s>' "$word" >>${path}/called; done\nprintf '${answer}'\n`,
  );
  await chmod(join(bin, "fleece"), 0o755);
  await writeFile(join(path, "script"), (await fleece(["completion", shell])).stdout);
  await writeFile(join(path, "some file.yaml"), "");
  const env = { ...process.env, PATH: `${bin}${delimiter}${process.env["PATH"] ?? ""}`, HOME: path };
  const run = async (command: string, args: readonly string[]) =>
    (await exec(command, args, { env, cwd: path, timeout: 20_000 })).stdout;
  return { path, run };
}

const VERBS = "run\\tback up\\nrestore\\twrite: it back\\n";

/** What bash does when TAB is pressed after these words. */
const inBash = (...words: readonly string[]): readonly string[] => {
  const list = words.map((word) => `'${word}'`).join(" ");
  return [
    "--norc",
    "-c",
    `set -u; source ./script; source ./script; COMP_WORDS=(${list}); COMP_CWORD=$((\${#COMP_WORDS[@]} - 1));
     _fleece fleece "\${COMP_WORDS[COMP_CWORD]}" x; printf '%s\\n' "\${COMPREPLY[@]}"; complete -p fleece`,
  ];
};

describe("the script of fleece completion", () => {
  it("completes in bash", async () => {
    const { path, run } = await shellPlace("bash", VERBS);
    expect(await run("bash", inBash("fleece", "backup", "$(touch x)", "r"))).toBe(
      "run\nrestore\ncomplete -F _fleece fleece\n",
    );
    // What is typed is passed on as it is.
    expect((await exec("cat", [join(path, "called")])).stdout).toBe("<complete><--><backup><$(touch x)><r>");
  });

  it("lets bash complete file names", async () => {
    const { run } = await shellPlace("bash", ":files\\n");
    expect(await run("bash", inBash("fleece", "--config", "so"))).toBe(
      "some file.yaml\ncomplete -F _fleece fleece\n",
    );
  });

  it.skipIf(!onPath("fish"))("completes in fish, if that is installed", async () => {
    const { path, run } = await shellPlace("fish", VERBS);
    const command = 'source ./script; complete -C "fleece backup r"';
    expect(await run("fish", ["--no-config", "-c", command])).toBe("restore\twrite: it back\nrun\tback up\n");
    expect((await exec("cat", [join(path, "called")])).stdout).toBe("<complete><--><backup><r>");
  });

  it.skipIf(!onPath("zsh"))("completes in zsh, if that is installed", async () => {
    const { path, run } = await shellPlace("zsh", VERBS);
    // The parts of zsh's completion that the script uses, as far as it uses them.
    const command = `compdef() { print "compdef $*" }; _describe() { print -l $2 "\${(@P)2}" };
      source ./script; words=(fleece backup r); CURRENT=3; _fleece`;
    expect(await run("zsh", ["-f", "-c", command])).toBe(
      "compdef _fleece fleece\nvalues\nrun:back up\nrestore:write: it back\n",
    );
    expect((await exec("cat", [join(path, "called")])).stdout).toBe("<complete><--><backup><r>");
  });
});
