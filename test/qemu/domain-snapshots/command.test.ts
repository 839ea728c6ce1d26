import { readFile, rm, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { startAgent } from "../../support/agent.js";
import { runFleece, type FleeceResult } from "../../support/fleece.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { startSite, type Site } from "../../support/site.js";
import { endMachines } from "../../support/machines-of.js";

const MIB = 1024 * 1024;
const DISKS = ["vda", "vdb"].map((target) => ({ target, format: "qcow2" as const, sizeBytes: 2 * MIB }));

interface Commands {
  readonly at: Site;
  /** `fleece domain-snapshot …`, in whatever way it goes out. */
  readonly run: (...args: string[]) => Promise<FleeceResult>;
  /** Expects success and gives the output. */
  readonly says: (...args: string[]) => Promise<string>;
  /** Expects the exit code and gives what is said. */
  readonly fails: (exitCode: number, ...args: string[]) => Promise<string>;
}

/** A QEMU without a guest, and the built command, by itself or through an agent. */
async function start(way: string): Promise<Commands> {
  const at = await startSite({ disks: DISKS });
  untilTestEnds({ [Symbol.asyncDispose]: () => endMachines(at.directory.path) });
  const embedded = way === "embedded" ? ["--embedded"] : [];
  if (way !== "embedded") await startAgent(at);
  const run = (...args: string[]): Promise<FleeceResult> =>
    runFleece([...embedded, "domain-snapshot", ...args], { configPath: at.configPath });
  return {
    ...{ at, run },
    async says(...args) {
      const { exitCode, stdout, stderr } = await run(...args);
      expect(exitCode, stderr).toBe(0);
      return stdout;
    },
    async fails(code, ...args) {
      const { exitCode, stdout, stderr } = await run(...args);
      expect([exitCode, stdout], stderr).toEqual([code, ""]);
      return stderr;
    },
  };
}

/** Without what differs between two runs: places, moments, durations, processes. */
function likeness(text: string, { directory }: Site): string {
  return text
    .replaceAll(directory.path, "DIR")
    .replace(/\d{4}-\d\d-\d\dT[\d:]+Z/g, "TIME")
    .replace(/\d+(\.\d+)? (ms|KiB|MiB)\b/g, "N $2")
    .replace(/process \d+/g, "process N")
    .replace(/before-s1-\d+/g, "before-s1-EPOCH")
    .replace(/<creationTime>\d+/g, "<creationTime>N");
}

/** One of everything; what each command says. */
async function story({ at, says, fails }: Commands): Promise<Record<string, string>> {
  const d = (name: string): string => at.directory.file(name);
  const said: Record<string, string> = {};
  said["none"] = await says("list", "vm");
  said["create"] = await says("create", "vm", "--name", "s1", "--description", "before the upgrade");
  said["taken"] = await fails(4, "create", "vm", "--name", "s1");
  const live = ["--live", "--directory", d("live")];
  said["live"] = await says("create", "vm", ...live, "--name", "s2");
  const disks = `disks = [ '${d("v9-a.qcow2")},qcow2,vda', ',qcow2,vdb' ]\n`;
  await writeFile(d("v9.cfg"), `name = "v9"\nmemory_path = "${d("v9.save")}"\n${disks}`);
  said["v9"] = await says("create", "vm", d("v9.cfg"));
  said["contradiction"] = await fails(2, "create", "vm", d("v9.cfg"), "--name", "other");
  const words = ["name=words", "memory=0", "memory_path=", "disks=[',qcow2,vda']"];
  said["words"] = await says("create", "vm", d("v9.cfg"), ...words);
  const v4 = `disk = [ 'vda=${d("v4-a.qcow2")},type=qcow2', 'vdb=${d("v4-b.qcow2")},type=qcow2' ]\n`;
  await writeFile(d("v4.cfg"), `name = "v4"\n${v4}save = "${d("v4.save")}"\n`);
  said["v4"] = await says("create", "vm", d("v4.cfg"));
  await writeFile(d("bad.cfg"), 'name = "bad"\ncolour = "red"\n');
  said["unknown key"] = await fails(2, "create", "vm", d("bad.cfg"));
  said["quiesce"] = await fails(2, "create", "vm", "--quiesce");
  said["mixed"] = await fails(1, "create", "vm", "--internal", "--name", "i1");
  said["xml"] = await says("dumpxml", "vm", "s1");
  await writeFile(d("copy.xml"), said["xml"].replaceAll("s1", "copy"));
  said["from xml"] = await says("create", "vm", "--xml", d("copy.xml"));
  said["show"] = await says("show", "vm", "copy");
  said["unknown"] = await fails(3, "show", "vm", "nobody");
  said["list"] = await says("list", "vm");
  said["long"] = await says("list", "vm", "--long");
  said["tree"] = await says("list", "vm", "--tree");
  said["cost"] = await says("revert", "vm", "s1", "--dry-run");
  said["revert"] = await says("revert", "vm", "s1");
  said["kept"] = await says("list", "vm", "--tree");
  said["partly"] = await fails(1, "revert", "vm", "words", "--force");
  said["revert by file"] = await says("revert", "vm", d("v9.cfg"), "--paused", "--force");
  said["clone"] = await says("clone", "vm", "s2", "--to", d("clone"));
  said["in use"] = await fails(4, "delete", "vm", "s2");
  await rm(d("clone"), { recursive: true });
  said["delete"] = await says("delete", "vm", "s2");
  said["forget"] = await says("delete", "vm", "v4", "--metadata");
  said["end"] = await says("list", "vm", "--tree");
  for (const [what, text] of Object.entries(said)) said[what] = likeness(text, at);
  return said;
}

const STORE = "DIR/state/domain-snapshots/vm";

function expectStory(said: Readonly<Record<string, string>>): void {
  expect(said["none"]).toBe("No domain snapshots\n");
  expect(said["create"]).toMatch(/^Domain snapshot s1 of domain vm is complete\n\nSnapshot +s1\n/);
  expect(said["create"]).toMatch(
    /\nDescription +before the upgrade\n(.*\n)*State +running\nType +external\n/,
  );
  expect(said["create"]).toContain(`${STORE}/s1.save (`);
  expect(said["taken"]).toBe("fleece: Domain vm already has a domain snapshot s1 (ALREADY_EXISTS)\n");
  expect(said["live"]).toMatch(/\nType +external, live\nMemory +DIR\/live\/s2\.save /);
  expect(said["v9"]).toMatch(/\nMemory +DIR\/v9\.save /);
  expect(said["contradiction"]).toMatch(/same of name, got other from the options and v9 from the document/);
  expect(said["words"]).toMatch(/\nType +external, disks only\n(.*\n)*Left out +vdb\n/);
  expect(said["words"]).not.toContain("Guest paused");
  expect(said["v4"]).toMatch(/\nDescends from +words\n(.*\n)*Memory +DIR\/v4\.save /);
  expect(said["unknown key"]).toMatch(
    /^fleece: DIR\/bad\.cfg:2: Expected one of name, .*, got colour \(CONFIG_/,
  );
  expect(said["quiesce"]).toMatch(
    /disk-only snapshot for quiesce, got one with memory.*\(INVALID_ARGUMENT\)/,
  );
  expect(said["mixed"]).toMatch(/has the external snapshot s1.*\(UNSUPPORTED\)/);
  expect(said["xml"]).toMatch(
    /<name>s1<\/name>(.|\n)*<memory snapshot='external' file='DIR\/state.*s1\.save'/,
  );
  expect(said["from xml"]).toMatch(/^Domain snapshot copy of domain vm(.|\n)*DIR\/v4-a\.qcow2\n/);
  expect(said["show"]).toBe(said["from xml"]?.split("\n\n").slice(1).join("\n\n"));
  expect(said["unknown"]).toMatch(
    /no domain snapshot nobody; it has s1, s2, v9, words, v4, copy \(DOMAIN_SNAP/,
  );
  for (const line of said["list"]?.split("\n") ?? []) expect(line.length).toBeLessThanOrEqual(80);
  expect(said["list"]).toMatch(/^s1 +- +TIME +running +external .* vda,vdb$/m);
  expect(said["list"]).toMatch(/^copy \* +v4 /m);
  expect(said["long"]).toContain(said["show"] ?? "nothing");
  const chain = ["s1", "└─ s2", "   └─ v9", "      └─ words", "         └─ v4", "            └─ copy"];
  expect(said["tree"]).toBe(`${chain.join("\n")} *\n`);
  expect(said["cost"]).toBe("The present disks are kept as before-s1-EPOCH\n");
  expect(said["revert"]).toBe(
    "Domain vm is back at snapshot s1: running, process N, stopped for N ms\nThe present disks are kept as before-s1-EPOCH\n",
  );
  expect(said["kept"]).toBe(
    `${[`${chain[0]} *`, ...chain.slice(1)].join("\n")}\n               └─ before-s1-EPOCH\n`,
  );
  expect(said["partly"]).toMatch(/does not hold vdb, which the running domain vm writes to.*\(UNSUPPORTED\)/);
  expect(said["revert by file"]).toBe(
    "Domain vm is back at snapshot v9: paused, process N, stopped for N ms\nThe present state is lost\n",
  );
  expect(said["clone"]).toMatch(
    /\n {2}vda: DIR\/clone\/vda\.qcow2\n(.*\n)* {2}memory: .*\nStart it with:\n {2}\S*qemu/,
  );
  expect(said["in use"]).toMatch(/s2 of vm is the base of clones: DIR\/clone;.*\(DOMAIN_SNAPSHOT_IN_USE\)/);
  expect(said["delete"]).toMatch(/^Deleted domain snapshot s2 of domain vm\n {2}vda: .* went into .*\n/);
  expect(said["forget"]).toMatch(/^Forgot domain snapshot v4 of domain vm\n {2}vda: \S+ stays\n/);
  expect(said["end"]).toBe("s1\n└─ v9 *\n   └─ words\n      └─ copy\n         └─ before-s1-EPOCH\n");
}

describe("domain-snapshot on the command line", () => {
  it("says the same by itself and through an agent, and what it says is right", async () => {
    const alone = await story(await start("embedded"));
    expectStory(alone);
    expect(await story(await start("agent"))).toEqual(alone);
  }, 300_000);

  it("names the present files of the disks, and tells all of it as JSON", async () => {
    const { at, says } = await start("embedded");
    const created: unknown = JSON.parse(await says("create", "vm", "--name", "s1", "--json"));
    const files = { vda: at.vm.disk("vda").path, vdb: at.vm.disk("vdb").path };
    expect(created).toMatchObject({
      ...{ domain: "vm", name: "s1", current: true, kind: "EXTERNAL", state: "RUNNING" },
      disks: [{ file: files.vda }, { file: files.vdb }],
      leftOutDisks: [],
    });
    expect(JSON.parse(await says("list", "vm", "--json"))).toEqual({ snapshots: [created] });
    expect(JSON.parse(await says("show", "vm", "s1", "--json"))).toEqual(created);
    const { stdout } = await at.run("domain", "show", "vm");
    const active = at.directory.file("state/domain-snapshots/vm/vda-s1.qcow2");
    expect(stdout).toContain(`Disk vda is in ${active} now, over ${files.vda}`);
    const reverted: unknown = JSON.parse(await says("revert", "vm", "s1", "--force", "--json"));
    expect(reverted).toMatchObject({ state: "RUNNING", snapshot: { name: "s1" }, cost: { risks: [] } });
    const { stdout: domains } = await at.run("domain", "list");
    expect(domains).toMatch(/^vm +running /m);
    expect(await at.json("backup", "run", "vm")).toMatchObject({ level: "FULL" });
    await says("create", "vm", "--name", "s2", "--disk-only");
    expect(await at.json("backup", "run", "vm")).toMatchObject({ level: "INCREMENTAL" });
  }, 120_000);

  it("refuses what has begun to be deleted, and internal snapshots in overlays", async () => {
    const { at, says, fails } = await start("embedded");
    await says("create", "vm", "--name", "s1", "--disk-only");
    const document = at.directory.file("state/domain-snapshots/vm/snapshots.json");
    const text = await readFile(document, "utf8");
    await writeFile(document, text.replace('"clones"', '"deleting": true, "clones"'));
    for (const more of [[], ["--force"], ["--dry-run"]]) {
      expect(await fails(6, "revert", "vm", "s1", ...more)).toMatch(/its deletion has begun.*\(DAMAGED\)/);
    }
    await says("delete", "vm", "s1", "--metadata");
    expect(await fails(1, "create", "vm", "--internal")).toMatch(/vda .* is in an overlay.*\(UNSUPPORTED\)/);
  }, 120_000);

  it("takes internal snapshots of all disks by their names, and none over or under external ones", async () => {
    const { at, says, fails } = await start("embedded");
    expect(await fails(2, "create", "vm", "name=half", "disks=[',,vda']")).toMatch(/vdb is left out/);
    expect(await says("create", "vm", "name=in", "disks=[',,vda', ',,vdb']")).toMatch(/\nType +internal\n/);
    const xml = await says("dumpxml", "vm", "in");
    expect(xml).toContain("<memory snapshot='internal'/>");
    await writeFile(at.directory.file("in.xml"), xml.replace(">in<", ">again<"));
    expect(await says("create", "vm", "--xml", at.directory.file("in.xml"))).toMatch(/\nMemory +in vda /);
    const refused = await fails(1, "create", "vm", "--disk-only");
    expect(refused).toMatch(/Expected an internal snapshot, as in of domain vm is one.*\(UNSUPPORTED\)/);
    await says("revert", "vm", "in");
    expect(await says("list", "vm", "--tree")).toMatch(/^in \*\n└─ again\n {3}└─ before-in-\d+\n$/);
    expect(await says("list", "vm")).toMatch(/^in \* +- .* internal +\d/m);
  }, 120_000);
});
