import { execFile } from "node:child_process";
import { chmod, readdir, stat, writeFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { promisify } from "node:util";
import { connectNbd, type NbdConnection } from "nbd-client-ts";
import { describe, expect, it, vi } from "vitest";
import { parseDomainXml } from "../../src/api/xml/domain-xml.js";
import { changedBlocks, changesSince } from "../support/changed-blocks.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { runFleece, startFleece, type FleeceProcess, type FleeceResult } from "../support/fleece.js";
import { copyToRaw, createImage, fileDigest, fillImage } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import { startSite, type SiteOptions } from "../support/site.js";
import { TestVm } from "../support/vm.js";
import { makeCertificates, makeClientCertificates } from "./nbd-client-ts/support/certificates.js";

const exec = promisify(execFile);
const MIB = 1024 * 1024;
const BLOCK = 64 * 1024;
const SOON = { timeout: 60_000, interval: 50 };

interface ExportMessage {
  readonly target: string;
  readonly exportName: string;
  readonly uri: string;
  readonly address?: string;
  readonly clients: readonly string[];
  readonly staged: boolean;
}

/** One that is free now. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** A site whose agent may offer exports at an address of its own; the agent runs. */
async function startRemote(options: SiteOptions = {}, front: object = {}, more: object = {}) {
  const at = await startSite(options);
  const port = await freePort();
  const pki = await makeCertificates(at.directory.file("pki"));
  const nbd = {
    address: `127.0.0.1:${port}`,
    certificate: "pki/server-cert.pem",
    key: "pki/server-key.pem",
    clientCa: "pki/ca-cert.pem",
    ...front,
  };
  const domain = { ...domainConfig("vm", at.vm), ...(options.exports && { exports: options.exports }) };
  const configure = (...others: ReturnType<typeof domainConfig>[]) =>
    writeConfig(at.directory.path, {
      domains: [domain, ...others],
      more: { runtimeDir: at.directory.file("run"), nbd, ...more },
    });
  await configure();
  const run = (...args: string[]): Promise<FleeceResult> => runFleece(args, { configPath: at.configPath });
  const serve = async (): Promise<FleeceProcess> => {
    const agent = untilTestEnds(await startFleece(["serve"], { configPath: at.configPath }));
    await agent.waitForOutput(/The agent answers on/, { timeoutMs: 60_000 });
    return agent;
  };
  return {
    ...at,
    port,
    address: `tcp:127.0.0.1:${port}`,
    certificates: pki,
    configure,
    run,
    serve,
    async json<T>(...args: string[]): Promise<T> {
      const result = await run(...args, "--json");
      if (result.exitCode !== 0) throw new Error(`fleece ${args.join(" ")} failed: ${result.stderr}`);
      return result.json() as T;
    },
  };
}

type Remote = Awaited<ReturnType<typeof startRemote>>;

const create = (at: Remote, ...more: string[]) =>
  at.json("block-snapshot", "create", "vm", "--name", "night", ...more);

async function offer(at: Remote, ...more: string[]): Promise<readonly ExportMessage[]> {
  const where = ["--address", at.address, "--client", "Test client"];
  const args = ["export", "start", "vm", "--snapshot", "night", ...where, ...more];
  return (await at.json<{ exports: ExportMessage[] }>(...args)).exports;
}

/** The export as a client with these certificates asks for it. */
const as = ({ uri }: ExportMessage, certificates: string) => `${uri}?tls-certificates=${certificates}`;

/** What the disk holds now; the guest must be quiet. */
async function momentOf(at: Remote, vm: TestVm, target: string): Promise<string> {
  await vm.guestFlush(target);
  const raw = at.directory.file(`${target}.moment.raw`);
  await copyToRaw(vm.disk(target).path, "qcow2", raw);
  return fileDigest(raw);
}

async function copied(at: Remote, message: ExportMessage): Promise<string> {
  const raw = at.directory.file("copy.raw");
  await exec("nbdcopy", [as(message, at.certificates), raw]);
  return fileDigest(raw);
}

/** A reader amid its work. */
async function startReader(at: Remote, message: ExportMessage): Promise<NbdConnection> {
  const reader = untilTestEnds(await connectNbd(as(message, at.certificates)));
  await reader.read(0, BLOCK);
  return reader;
}

/** The reader is cut off, and nobody can connect any more. */
async function expectCut(at: Remote, message: ExportMessage, reader: NbdConnection): Promise<void> {
  await vi.waitFor(() => expect(reader.read(0, BLOCK)).rejects.toThrow(), SOON);
  await expect(connectNbd(as(message, at.certificates))).rejects.toThrow();
}

const rejection = (uri: string) =>
  exec("nbdinfo", ["--size", uri]).then(
    () => undefined,
    (error: unknown) => (error as { stderr: string }).stderr,
  );

describe("an export at the agent's TCP address", () => {
  it("shows the named client the frozen moment and the changes, by TLS, and nobody else", async () => {
    const at = await startRemote();
    await at.serve();
    await create(at, "--checkpoint=cp0");
    await at.json("block-snapshot", "delete", "vm", "night");
    await at.vm.guestWrite("vda", 5 * BLOCK, 512, 0x77);
    const moments = [await momentOf(at, at.vm, "vda"), await momentOf(at, at.vm, "vdb")];
    await create(at);
    const exports = await offer(at, "--since", "cp0");
    await at.vm.guestWrite("vda", 0, 2 * MIB, 0xee);
    expect(exports).toMatchObject(
      ["vda", "vdb"].map((target) => ({
        target,
        exportName: `vm/${target}-night`,
        uri: `nbds://127.0.0.1:${at.port}/vm/${target}-night`,
        address: at.address,
        clients: ["Test client"],
      })),
    );
    const [vda, vdb] = exports as readonly [ExportMessage, ExportMessage];
    expect([await copied(at, vda), await copied(at, vdb)]).toEqual(moments);
    expect(await changedBlocks(as(vda, at.certificates), changesSince("cp0"))).toEqual([5]);
    expect(await at.json("export", "list", "vm")).toEqual({ exports });
    expect(await offer(at, "--since", "cp0")).toEqual(exports);

    const other = await makeClientCertificates(at.directory.file("o"), at.certificates, { name: "Other" });
    expect(await rejection(as(vda, other))).toMatch(/No such file|not found|does not exist|ENOENT/i);
    const strange = await makeCertificates(at.directory.file("s"));
    expect(await rejection(as(vda, strange))).toMatch(/TLS|certificate/i);
    expect(await rejection(vda.uri.replace("nbds:", "nbd:"))).toMatch(/TLS|policy/i);

    const again = await at.run("export", "start", "vm", "--snapshot", "night", "--since", "cp0");
    expect(again.stderr).toMatch(
      /exported already, with the changes since cp0 at tcp:.* for Test client.*ALREADY_EXISTS/s,
    );
  });

  it("is granted to the caller's own certificate when no client is named, and to no other of the same name", async () => {
    const tls = {
      certificate: "pki/server-cert.pem",
      key: "pki/server-key.pem",
      clientCa: "pki/ca-cert.pem",
    };
    const tcp = { address: "127.0.0.1:0", ...tls };
    const clients = [{ subject: "Test client", role: "operator" }];
    const at = await startRemote({}, {}, { api: { tcp, clients } });
    const agent = await at.serve();
    const [, port = ""] = /by TLS on 127\.0\.0\.1:(\d+)/.exec(agent.stdout) ?? [];
    const show = ["ca=ca-cert.pem", "certificate=client-cert.pem", "key=client-key.pem"];
    const options = show.map((each) => `--${each.replace("=", `=${at.certificates}/`)}`);
    const vendor = (...args: string[]) => at.run("--json", `--agent=127.0.0.1:${port}`, ...options, ...args);
    expect(await vendor("block-snapshot", "create", "vm", "--name", "night")).toMatchObject({ exitCode: 0 });
    const start = ["export", "start", "vm", "--snapshot", "night", "--address", at.address];
    expect((await at.run(...start)).stderr).toMatch(/at least one client certificate.*INVALID_ARGUMENT/s);
    const { exports } = (await vendor(...start)).json() as { exports: readonly [ExportMessage] };
    expect(exports[0].clients).toEqual([expect.stringMatching(/^sha256:[0-9a-f]{64}$/)]);
    await startReader(at, exports[0]);
    const name = "Test client";
    const namesake = await makeClientCertificates(at.directory.file("o"), at.certificates, { name });
    expect(await rejection(as(exports[0], namesake))).toMatch(
      /No such file|not found|does not exist|ENOENT/i,
    );
  });

  it("ends, under its readers, when it is stopped; the port is closed after the last", async () => {
    const at = await startRemote();
    await at.serve();
    await create(at);
    const [vda] = (await offer(at)) as readonly [ExportMessage];
    const reader = await startReader(at, vda);
    await at.json("export", "stop", "vm", "--snapshot", "night");
    await expectCut(at, vda, reader);
    await expect(exec("nbdinfo", ["--list", `nbd://127.0.0.1:${at.port}`])).rejects.toThrow(
      /Connection refused/,
    );
    const [second] = (await offer(at)) as readonly [ExportMessage];
    const next = await startReader(at, second);
    await at.json("block-snapshot", "delete", "vm", "night");
    await expectCut(at, second, next);
  });

  it("ends with the lease, which a renewal moves", async () => {
    const at = await startRemote();
    await at.serve();
    await create(at, "--lease", "10m");
    const [vda] = (await offer(at)) as readonly [ExportMessage];
    const reader = await startReader(at, vda);
    await at.json("block-snapshot", "renew", "vm", "night", "--lease", "1s");
    await expectCut(at, vda, reader);
  });

  it.each(["SIGTERM", "SIGKILL"] as const)(
    "is there again after the agent got %s and was restarted",
    async (signal) => {
      const at = await startRemote();
      const agent = await at.serve();
      const moment = await momentOf(at, at.vm, "vda");
      await create(at);
      const [vda] = (await offer(at)) as readonly [ExportMessage];
      const reader = await startReader(at, vda);
      await agent.kill(signal);
      await expectCut(at, vda, reader);
      await at.vm.guestWrite("vda", 0, MIB, 0xee);
      await at.serve();
      expect(await copied(at, vda)).toBe(moment);
      const other = await makeClientCertificates(at.directory.file("o"), at.certificates, { name: "Other" });
      expect(await rejection(as(vda, other))).toBeDefined();
      await at.json("block-snapshot", "delete", "vm", "night");
      expect(await rejection(as(vda, at.certificates))).toMatch(/Connection refused/);
    },
  );

  it("shares the address with those of another domain", async () => {
    const at = await startRemote();
    const image = at.directory.file("second.qcow2");
    await createImage(image, 8 * MIB, { format: "qcow2" });
    await fillImage(image, "qcow2", { offset: 0, length: MIB, pattern: 0x11 });
    const disks = [{ target: "vda", path: image, format: "qcow2" as const }];
    const second = untilTestEnds(await TestVm.start({ directory: at.directory.path, disks, name: "second" }));
    await at.configure(domainConfig("second", second));
    await at.serve();
    const moments = [await momentOf(at, at.vm, "vda"), await momentOf(at, second, "vda")];
    await create(at);
    await at.json("block-snapshot", "create", "second", "--name", "night");
    const [first] = (await offer(at)) as readonly [ExportMessage];
    const { exports } = await at.json<{ exports: readonly [ExportMessage] }>(
      ...["export", "start", "second", "--snapshot", "night"],
      ...["--address", at.address, "--client", "Test client"],
    );
    expect(exports[0].uri).toBe(`nbds://127.0.0.1:${at.port}/second/vda-night`);
    const reader = await startReader(at, exports[0]);
    expect([await copied(at, first), await copied(at, exports[0])]).toEqual(moments);
    await at.json("block-snapshot", "delete", "vm", "night");
    await reader.read(0, BLOCK);
    expect(await rejection(as(first, at.certificates))).toBeDefined();
  });

  it("keeps to the configured limits: one connection of a client, until that has been idle for long enough", async () => {
    const at = await startRemote({}, { connectionsPerClient: 1, idleTimeout: "10s" });
    await at.serve();
    await create(at);
    const [vda] = (await offer(at)) as readonly [ExportMessage];
    const reader = await startReader(at, vda);
    const second = () => connectNbd(as(vda, at.certificates));
    await expect(second()).rejects.toThrow();
    await reader.read(0, BLOCK);
    await vi.waitFor(async () => untilTestEnds(await second()), SOON);
    await expect(reader.read(0, BLOCK)).rejects.toThrow();
  });

  it("shows staged exports just so", async () => {
    const at = await startRemote({ exports: "staged" });
    await at.serve();
    const moment = await momentOf(at, at.vm, "vda");
    await create(at);
    const [vda] = (await offer(at)) as readonly [ExportMessage];
    expect(vda.staged).toBe(true);
    await at.vm.guestWrite("vda", 0, 2 * MIB, 0xee);
    expect(await copied(at, vda)).toBe(moment);
    const reader = await startReader(at, vda);
    await at.json("export", "stop", "vm", "--snapshot", "night");
    await expectCut(at, vda, reader);
    // Their daemons would outlive the agent.
    await at.json("block-snapshot", "delete", "vm", "night");
  });
});

describe("the RFC's documents with an address", () => {
  it("are taken and shown whole", async () => {
    const at = await startRemote();
    await at.serve();
    await create(at, "--checkpoint=cp0");
    await at.json("block-snapshot", "delete", "vm", "night");
    const moment = await momentOf(at, at.vm, "vda");
    await create(at);
    const document = at.directory.file("export.xml");
    await writeFile(
      document,
      `<domainblockexport type='nbd'>
  <address type='ip' host='127.0.0.1' port='${at.port}'/>
  <disk name='vda' snapshot='night' checkpoint='cp0'/>
  <disk name='vdb' snapshot='night' checkpoint='cp0'/>
</domainblockexport>
`,
    );
    const start = ["export", "start", "vm", "--xml", document];
    const { exports } = await at.json<{ exports: readonly [ExportMessage] }>(
      ...start,
      "--client",
      "Test client",
    );
    expect(await copied(at, exports[0])).toBe(moment);
    const shown = await at.run("domain", "dumpxml", "vm");
    expect(parseDomainXml(shown.stdout).blockExports).toEqual([
      {
        address: { type: "ip", host: "127.0.0.1", port: at.port },
        disks: ["vda", "vdb"].map((name) => ({
          ...{ name, snapshot: "night", checkpoint: "cp0", exportName: `vm/${name}-night` },
        })),
      },
    ]);
    expect((await at.run(...start)).stderr).toMatch(/at least one client certificate.*INVALID_ARGUMENT/s);
  });

  it("may ask for a socket, which goes with the exports, also after the agent was killed", async () => {
    const at = await startRemote();
    const agent = await at.serve();
    const moment = await momentOf(at, at.vm, "vda");
    await create(at);
    const socket = at.directory.file("reader.sock");
    const document = at.directory.file("export.xml");
    await writeFile(
      document,
      `<domainblockexport type='nbd'><address type='unix' path='${socket}'/><disk name='vda' snapshot='night'/></domainblockexport>`,
    );
    const start = ["export", "start", "vm", "--xml", document];
    const { exports } = await at.json<{ exports: readonly [ExportMessage] }>(...start);
    expect(exports[0]).toMatchObject({
      uri: `nbd+unix:///vm/vda-night?socket=${socket}`,
      address: `unix:${socket}`,
      clients: [],
    });
    expect((await stat(socket)).mode & 0o777).toBe(0o600);
    const copy = async () => {
      await exec("nbdcopy", [exports[0].uri, at.directory.file("copy.raw")]);
      return fileDigest(at.directory.file("copy.raw"));
    };
    expect(await copy()).toBe(moment);
    await agent.kill("SIGKILL");
    const next = await at.serve();
    expect(await copy()).toBe(moment);
    await at.json("export", "stop", "vm", "--snapshot", "night");
    await expect(stat(socket)).rejects.toMatchObject({ code: "ENOENT" });
    await at.json(...start);
    await next.kill("SIGKILL");
    await at.run("--embedded", "block-snapshot", "delete", "vm", "night");
    await expect(stat(socket)).rejects.toMatchObject({ code: "ENOENT" });
  });
});

describe("an address that exports cannot have", () => {
  it("is refused before anything is done", async () => {
    const at = await startRemote();
    await at.serve();
    await create(at);
    const before = await at.state();
    const start = ["export", "start", "vm", "--snapshot", "night"];
    const refusals: readonly [readonly string[], RegExp][] = [
      [["--address", "tcp:127.0.0.1:1", "--client", "c"], /Expected the address tcp:127.*INVALID_ARGUMENT/s],
      [["--address", at.address], /at least one client certificate.*INVALID_ARGUMENT/s],
      [["--address", at.address, "--client", "sha256:12"], /Expected a client by .*INVALID_ARGUMENT/s],
      [["--client", "c"], /Expected an address at which .*INVALID_ARGUMENT/s],
      [["--address", "udp:1"], /Expected an address like tcp:.*INVALID_ARGUMENT/s],
      [["--address", `unix:${at.configPath}`], /fleece\.yaml: .*ALREADY_EXISTS/s],
      [["--address", "unix:/s", "--client", "c"], /Expected no clients .*INVALID_ARGUMENT/s],
      [["--embedded", "--address", at.address, "--client", "c"], /needs an agent.*UNSUPPORTED/s],
    ];
    for (const [args, stderr] of refusals) expect((await at.run(...start, ...args)).stderr).toMatch(stderr);
    const taken = untilTestEnds(createServer());
    await new Promise<void>((resolve) => taken.listen(at.port, "127.0.0.1", resolve));
    const occupied = await at.run(...start, "--address", at.address, "--client", "c");
    expect(occupied.stderr).toMatch(/Cannot listen on 127\.0\.0\.1:.*ALREADY_EXISTS/s);
    expect(await at.state()).toEqual(before);
    expect(await readdir(at.directory.file("run"))).toEqual(["agent.sock"]);
  });

  it("is any, where the configuration has none", async () => {
    const at = await startRemote();
    await writeConfig(at.directory.path, {
      domains: [domainConfig("vm", at.vm)],
      more: { runtimeDir: at.directory.file("run") },
    });
    await at.serve();
    await create(at);
    const refused = await at.run(
      ...["export", "start", "vm", "--snapshot", "night", "--address", at.address, "--client", "c"],
    );
    expect(refused.stderr).toMatch(/the configuration has no nbd\.address.*UNSUPPORTED/s);
    expect(refused.exitCode).toBe(1);
  });

  it("is none without TLS, unless the configuration says so in words", async () => {
    const keys = { certificate: undefined, key: undefined, clientCa: undefined };
    const at = await startRemote({}, { ...keys, plaintext: true });
    await at.serve();
    const moment = await momentOf(at, at.vm, "vda");
    await create(at);
    const { exports } = await at.json<{ exports: readonly [ExportMessage] }>(
      ...["export", "start", "vm", "--snapshot", "night", "--address", at.address],
    );
    expect(exports[0]).toMatchObject({ uri: `nbd://127.0.0.1:${at.port}/vm/vda-night`, clients: [] });
    await exec("nbdcopy", [exports[0].uri, at.directory.file("copy.raw")]);
    expect(await fileDigest(at.directory.file("copy.raw"))).toBe(moment);
  });

  it("keeps an agent from starting whose key others may read", async () => {
    const at = await startRemote();
    await chmod(at.directory.file("pki/server-key.pem"), 0o644);
    const refused = await at.run("serve");
    expect(refused.stderr).toMatch(/server-key\.pem to be its owner's alone.*PERMISSION_DENIED/s);
    expect(refused.exitCode).toBe(1);
  });
});
