import { execFile } from "node:child_process";
import { chmod, readFile, stat, symlink } from "node:fs/promises";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { runFleece, startFleece } from "../../support/fleece.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { startSite, type Site } from "../../support/site.js";

const README = new URL("../../../config/README.md", import.meta.url);

/** The commands of config/README.md, run as they are there. */
async function makeCertificates(at: Site): Promise<void> {
  const text = await readFile(README, "utf8");
  const [, recipe] = /```sh\n(umask 077\n[\s\S]*?)```/.exec(text) ?? [];
  if (recipe === undefined) throw new Error("config/README.md has no recipe");
  await promisify(execFile)("sh", ["-e", "-c", recipe], { cwd: at.directory.path });
}

const TCP = { address: "127.0.0.1:0", certificate: "agent.pem", key: "agent.key", clientCa: "ca.pem" };

/** A host with an agent that a client `backup01` may use as an operator. */
async function site(api: Record<string, unknown> = {}): Promise<Site> {
  const clients = [{ subject: "backup01", role: "operator" }];
  const more = { api: { socket: "agent.sock", tcp: TCP, clients, ...api } };
  const at = await startSite({ config: { more } });
  await makeCertificates(at);
  return at;
}

const agentOf = (at: Site) => startFleece(["serve"], { configPath: at.configPath });

describe("fleece with --agent", () => {
  it("backs up a virtual machine of another host, by the certificates of the recipe and no configuration", async () => {
    const at = await site();
    const agent = untilTestEnds(await agentOf(at));
    const [, port] = await agent.waitForOutput(/by TLS on 127\.0\.0\.1:(\d+)/, { timeoutMs: 60_000 });
    const env = {
      FLEECE_AGENT: `localhost:${port ?? ""}`,
      FLEECE_CA: "ca.pem",
      FLEECE_CERTIFICATE: "backup01.pem",
      FLEECE_KEY: "backup01.key",
    };
    const remote = (...args: string[]) => runFleece(args, { cwd: at.directory.path, env });
    const run = await remote("--json", "backup", "run", "vm");
    expect(run).toMatchObject({ exitCode: 0, stderr: "" });
    const { id } = run.json() as { readonly id: string };
    expect(await remote("backup", "verify", id)).toMatchObject({ exitCode: 0 });
    const created = await remote("--json", "block-snapshot", "create", "vm", "--name", "s1");
    expect(created.json()).toMatchObject({ owner: "backup01" });
    expect((await remote("block-snapshot", "list", "vm")).stdout).toMatch(/OWNER[\s\S]*backup01/);
    const denied = await remote("backup", "delete", id);
    expect(denied).toMatchObject({ exitCode: 1 });
    expect(denied.stderr).toContain("(ACCESS_DENIED)");
    const relative = await remote("--json", "backup", "restore", id, "--to", "here");
    expect(relative.stderr).toContain("ACCESS_DENIED");

    const lines = (await readFile(at.directory.file("state/audit.log"), "utf8")).trim().split("\n");
    const told = lines.map((line) => JSON.parse(line) as { event: string; method?: string; client?: string });
    expect(told.map(({ event, method = "" }) => `${event} ${method}`)).toEqual([
      "start ",
      "begin Backups.Run",
      "end Backups.Run",
      "begin BlockSnapshots.Create",
      "end BlockSnapshots.Create",
      "denied Backups.Delete",
      "denied Backups.Restore",
    ]);
    expect(told.slice(1).every(({ client }) => client === "backup01")).toBe(true);
    expect((await stat(at.directory.file("state/audit.log"))).mode & 0o777).toBe(0o600);
  });

  it.each([
    [["--agent", "localhost"], "Expected HOST:PORT"],
    [["--agent", "localhost:7433"], "Expected --certificate"],
    [["--agent", "localhost:7433", "--embedded"], "Expected either --agent or --embedded"],
  ])("refuses %j", async (args, words) => {
    const { exitCode, stderr } = await runFleece([...args, "domain", "list"], { cwd: "/" });
    expect({ exitCode, stderr }).toEqual({ exitCode: 2, stderr: expect.stringContaining(words) as string });
  });
});

describe("fleece serve", () => {
  it("does not start with a key that others may read", async () => {
    const at = await site();
    await chmod(at.directory.file("agent.key"), 0o644);
    const { exitCode, stderr } = await (await agentOf(at)).result();
    expect(exitCode).toBe(1);
    expect(stderr).toContain("to be its owner's alone (mode 0600), got mode 0644");
    expect(stderr).toContain("(PERMISSION_DENIED)");
  });

  it("does not start with a certificate of another key", async () => {
    const at = await site({ tcp: { ...TCP, key: "backup01.key" } });
    const { exitCode, stderr } = await (await agentOf(at)).result();
    expect({ exitCode, stderr }).toEqual({
      exitCode: 2,
      stderr: expect.stringContaining("(TLS_INVALID)") as string,
    });
  });

  it("does not start with an audit log that is a link", async () => {
    const at = await site({ auditLog: "audit.link" });
    await symlink("/dev/null", at.directory.file("audit.link"));
    const { exitCode, stderr } = await (await agentOf(at)).result();
    expect({ exitCode, stderr }).toEqual({
      exitCode: 1,
      stderr: expect.stringContaining("(AUDIT_FAILED)") as string,
    });
  });

  it("lets a group use its socket", async () => {
    const at = await site({ socketGroup: "daemon" });
    const agent = untilTestEnds(await agentOf(at));
    await agent.waitForOutput(/The agent answers/, { timeoutMs: 60_000 });
    const { mode, gid } = await stat(at.directory.file("agent.sock"));
    const { stdout } = await promisify(execFile)("getent", ["group", "daemon"]);
    expect([mode & 0o777, String(gid)]).toEqual([0o660, stdout.split(":")[2]]);
  });
});
