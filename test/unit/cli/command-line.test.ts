import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ErrorCode } from "../../../src/shared/errors.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { writeConfig } from "../../support/config-file.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { fleece, someConfig } from "./run-in-process.js";

const VERBS = [
  ...["domain list", "domain show", "domain dumpxml"],
  "doctor",
  ...["create", "list", "show", "dumpxml", "renew", "delete"].map((verb) => `block-snapshot ${verb}`),
  ...["export start", "export list", "export stop"],
  ...["checkpoint list", "checkpoint show", "checkpoint delete"],
  ...[
    "backup run",
    "backup list",
    "backup show",
    "backup verify",
    "backup restore",
    "backup serve",
    "backup boot-test",
    "backup delete",
    "backup protect",
    "backup unprotect",
    "backup copy",
    "backup prune",
  ],
];

describe("fleece --help", () => {
  it.each(VERBS)("explains `%s` with its arguments and the global options", async (verb) => {
    const { exitCode, stdout, stderr } = await fleece([...verb.split(" "), "--help"]);
    expect(exitCode).toBe(0);
    expect(stderr).toBe("");
    expect(stdout).toContain(`Usage: fleece ${verb} [options]`);
    for (const option of ["--config", "--json", "--embedded", "--log-level", "--version"]) {
      expect(stdout).toContain(option);
    }
  });

  it("lists the groups and the exit codes", async () => {
    const { exitCode, stdout } = await fleece(["-h"]);
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(
      /domain .*block-snapshot .*export .*checkpoint .*backup .*Exit codes:.*6 verification found damage/s,
    );
  });

  it.each([["domain"], ["block-snapshot"], ["export"], ["checkpoint"], ["backup"]])(
    "lists exactly the verbs of %s",
    async (group) => {
      const { stdout } = await fleece([group, "--help"]);
      expect(stdout).toMatch(/^[A-Z][a-z, -]+( NBD [a-z ]+)?\.$/m);
      const commands = stdout.split("Commands:\n")[1] ?? "";
      const listed = [...commands.matchAll(/^ {2}([\w-]+)/gm)].map(([, verb]) => `${group} ${verb ?? ""}`);
      expect(listed.toSorted()).toEqual(VERBS.filter((verb) => verb.startsWith(`${group} `)).toSorted());
    },
  );

  it("prints the version", async () => {
    expect(await fleece(["--version"])).toEqual({
      exitCode: 0,
      stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) as unknown,
      stderr: "",
    });
  });
});

describe("wrong usage", () => {
  it.each<[string, RegExp]>([
    ["domian list", /Unknown command 'domian'/],
    ["backup lits", /Unknown command 'lits'/],
    ["backup show", /Missing required argument 'id'/],
    ["backup show a b", /Too many arguments/],
    ["backup list --depp", /Unknown option '--depp'/],
    ["backup run vm --full --incremental", /cannot be used with/],
    ["backup run vm --frozen", /Unknown option '--frozen'/],
    ["backup restore b", /Expected --to DIRECTORY, or a place for each disk/],
    ["backup restore b --to d --format vmdk", /Allowed choices are qcow2, raw/],
    ["block-snapshot create vm --frozen", /Unknown option '--frozen'/],
    [
      "block-snapshot create vm --lease 30",
      /--lease <duration>': expected a number with a unit, s, m, h or d .*, got "30" \(/,
    ],
    ["block-snapshot create --checkpoint vm", /Missing required argument 'domain'/],
    ["block-snapshot renew vm", /Missing required argument 'name'/],
    ["export start vm", /Required option '--snapshot <name>'/],
    ["export stop vm", /Required option '--snapshot <name>'/],
    ["domain list --log-level loud", /Allowed choices are trace/],
  ])("ends `fleece %s` with exit code 2 and says why", async (line, why) => {
    const { exitCode, stdout, stderr } = await fleece(line.split(" "));
    expect(exitCode).toBe(2);
    expect(stdout).toBe("");
    expect(stderr).toMatch(why);
    expect(stderr).toMatch(/^fleece: .* \(INVALID_ARGUMENT\)\n {2}--help/);
  });

  it.each([[[]], [["backup"]]])(
    "prints help to stderr when the verb is missing: %j",
    async (args: string[]) => {
      const { exitCode, stdout, stderr } = await fleece(args);
      expect(exitCode).toBe(2);
      expect(stdout).toBe("");
      expect(stderr).toContain("Usage: fleece");
    },
  );

  it("is told as JSON alone with --json", async () => {
    const { exitCode, stderr } = await fleece(["backup", "show", "--json"]);
    expect(exitCode).toBe(2);
    expect(JSON.parse(stderr)).toMatchObject({ error: { code: "INVALID_ARGUMENT", facts: {} } });
  });
});

describe("a command without --embedded", () => {
  it.each(["domain list", "backup run vm", "checkpoint delete vm c"])(
    "ends `%s` with exit code 5",
    async (line) => {
      const { path } = await temporaryDirectory();
      const domains = [{ name: "vm", qmp: "vm.qmp" }];
      const config = await writeConfig(path, { domains, more: { runtimeDir: path } });
      const { exitCode, stderr } = await fleece([...line.split(" "), "--config", config]);
      expect(exitCode).toBe(5);
      expect(stderr).toBe(
        `fleece: No agent answers on ${path}/agent.sock; start one with \`fleece serve\`, ` +
          "or add --embedded to run the command without one (AGENT_UNREACHABLE)\n",
      );
    },
  );
});

describe("the configuration", () => {
  const list = (...args: string[]) => ["--embedded", "domain", "list", ...args];

  it("may be named before and after the verb", async () => {
    for (const args of [list("--config", "/nowhere"), ["--config", "/nowhere", ...list()]]) {
      const { exitCode, stderr } = await fleece(args);
      expect(exitCode).toBe(2);
      expect(stderr).toBe(
        "fleece: Cannot read the configuration /nowhere: it does not exist (CONFIG_NOT_FOUND)\n",
      );
    }
  });

  it("comes from $FLEECE_CONFIG, then ./fleece.yaml, then /etc/fleece", async () => {
    const { path } = await temporaryDirectory();
    const used = async (env: Record<string, string>) => (await fleece(list(), { cwd: path, env })).stderr;
    expect(await used({ FLEECE_CONFIG: "other.yaml" })).toContain(join(path, "other.yaml"));
    expect(await used({ FLEECE_CONFIG: "" })).toBe(
      `fleece: Expected a configuration at ${join(path, "fleece.yaml")} or /etc/fleece/fleece.yaml, ` +
        "or one named by --config or $FLEECE_CONFIG; found none (CONFIG_NOT_FOUND)\n",
    );
    await writeFile(join(path, "fleece.yaml"), "stateDir: [");
    expect(await used({})).toContain(join(path, "fleece.yaml"));
  });

  it("that is wrong is told problem by problem, each on a line of its own", async () => {
    const { path } = await temporaryDirectory();
    await mkdir(join(path, "d"));
    const file = join(path, "d", "fleece.yaml");
    await writeFile(
      file,
      'stateDir: s\n"scratch\\nDir": s\ndomains: []\nrepositories: [{ name: r, path: p }]\n',
    );
    const { exitCode, stderr } = await fleece(list("--config", file));
    expect(exitCode).toBe(2);
    const [head, ...problems] = stderr.trimEnd().split("\n");
    expect(head).toBe("fleece: The configuration cannot be used (CONFIG_INVALID)");
    expect(problems.length).toBeGreaterThanOrEqual(3);
    for (const problem of problems) expect(problem.startsWith(`  ${file}:`)).toBe(true);
    expect(stderr).toContain("scratch\\nDir");
    const asJson = await fleece(list("--config", file, "--json"));
    expect(JSON.parse(asJson.stderr)).toMatchObject({ error: { code: "CONFIG_INVALID" } });
  });
});

describe("a failure", () => {
  const failing = async (error: Error, ...args: string[]) =>
    fleece(["domain", "list", "--embedded", "--config", await someConfig(), ...args], {
      startAgent: () => Promise.reject(error),
    });

  it.each<[ErrorCode, number]>([
    ["QEMU_FAILED", 1],
    ["INVALID_NAME", 2],
    ["BACKUP_NOT_FOUND", 3],
    ["ALREADY_EXISTS", 4],
    ["DOMAIN_UNREACHABLE", 5],
    ["DAMAGED", 6],
  ])("with code %s has exit code %i", async (code, exitCode) => {
    const outcome = await failing(new FleeceError(code, "Expected one thing, got another"));
    expect(outcome).toEqual({
      exitCode,
      stdout: "",
      stderr: `fleece: Expected one thing, got another (${code})\n`,
    });
  });

  it("is one JSON object on stderr with --json, and nothing on stdout", async () => {
    const error = new FleeceError("DOMAIN_BUSY", "Busy", { facts: { domain: "vm", by: ["a", "b"] } });
    const { exitCode, stdout, stderr } = await failing(error, "--json");
    expect(exitCode).toBe(4);
    expect(stdout).toBe("");
    expect(JSON.parse(stderr)).toEqual({
      error: { code: "DOMAIN_BUSY", message: "Busy", facts: { domain: "vm", by: ["a", "b"] } },
    });
  });

  it("stays on one line, whatever characters a name brings", async () => {
    const { stderr } = await failing(new FleeceError("DOMAIN_NOT_FOUND", "No domain a\nb\u001b[31m\u202e"));
    expect(stderr).toBe("fleece: No domain a\\nb\\u001b[31m\\u202e (DOMAIN_NOT_FOUND)\n");
  });

  it("that nobody expected is INTERNAL, without a stack", async () => {
    const { exitCode, stderr } = await failing(new TypeError("x is not a function"));
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/^fleece: x is not a function \(INTERNAL\)\n.*--log-level debug.*\n$/);
  });

  it("shows its stack and causes with --log-level debug", async () => {
    const error = new FleeceError("NBD_FAILED", "Outer", { cause: new Error("Inner") });
    const { stderr } = await failing(error, "--log-level", "debug");
    expect(stderr).toMatch(/Outer\n\s+at .*caused by Error: Inner\n\s+at .*fleece: Outer \(NBD_FAILED\)\n$/s);
  });
});
