import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { connect as connectTls } from "node:tls";
import type { CallName } from "../../../src/api/call-types.js";
import { ApiClient } from "../../../src/api/client.js";
import { CALLS } from "../../../src/api/calls.js";
import { ROLES, permits, type Role } from "../../../src/model/access.js";
import { Authority, type Credentials } from "../../support/authority.js";
import { FIRST_PAGE } from "../../support/first-page.js";
import { serveApi, type AuditLine } from "../../support/served-api.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";

let directory: TemporaryDirectory;
let authority: Authority;
let agent: Credentials;
const byRole = {} as Record<Role | "other", Credentials>;

beforeAll(async () => {
  directory = await TemporaryDirectory.create();
  authority = await Authority.create(directory.file("ours"));
  agent = await authority.issue("agent", { usage: "serverAuth", names: "IP:127.0.0.1" });
  for (const name of [...ROLES, "other"] as const) byRole[name] = await authority.issue(name);
});
afterAll(() => directory[Symbol.asyncDispose]());

const CLIENTS = [
  ...ROLES.map((role) => ({ name: role, subject: role, role })),
  { name: "other", subject: "other", role: "operator" as const },
];

/** An agent that knows a client of each role, called like it, and another operator. */
const serve = (options: Parameters<typeof serveApi>[0] = {}) =>
  serveApi({ tls: agent.content, clients: CLIENTS, ...options });

/** A request with something in each field that must have something. */
function requestOf(name: CallName): object {
  const lists = { disks: [], pageSize: 0, pageToken: "" };
  const fields: Record<string, string> = {};
  for (const field of Object.keys(CALLS[name].names)) fields[field] = field === "domain" ? "vm" : "none";
  if (name === "Backups.Restore") fields["directory"] = "/none";
  return { ...lists, level: "LEVEL_UNSPECIFIED", format: "FORMAT_UNSPECIFIED", ...fields };
}

const without = (line: AuditLine | undefined, ...keys: string[]) =>
  Object.fromEntries(Object.entries(line ?? {}).filter(([key]) => !keys.includes(key)));

async function codeOf(call: Promise<unknown>): Promise<string> {
  try {
    await call;
    return "OK";
  } catch (error) {
    return (error as { readonly code: string }).code;
  }
}

describe("a client's certificate", () => {
  it("lets its client in, by its common name or by its fingerprint", async () => {
    const { fingerprint } = byRole.viewer;
    const clients = [{ name: "first", role: "viewer", fingerprint } as const, ...CLIENTS.slice(1)];
    const served = await serve({ clients });
    for (const role of ["viewer", "operator"] as const) {
      const api = await served.remote(byRole[role]);
      expect(await api.call("Domains.List", FIRST_PAGE)).toMatchObject({ domains: [{ name: "vm" }] });
    }
  });

  it("without an entry is told that it is unknown, in words, log and audit log", async () => {
    const served = await serve({ clients: CLIENTS.slice(1) });
    const api = await served.remote(byRole.viewer);
    await expect(api.call("Domains.List", FIRST_PAGE)).rejects.toMatchObject({ code: "CLIENT_UNKNOWN" });
    const [line] = await served.audit();
    expect(line).toMatchObject({
      event: "refused",
      method: "Domains.List",
      code: "CLIENT_UNKNOWN",
      subject: "viewer",
      fingerprint: byRole.viewer.fingerprint,
      peer: expect.stringMatching(/^127\.0\.0\.1:\d+$/) as string,
    });
    expect(served.world.log).toContain("A client was refused");
  });

  it("with two common names is none of them", async () => {
    const served = await serve();
    const both = await authority.issue(["viewer", "administrator"]);
    expect(await codeOf((await served.remote(both)).call("Domains.List", FIRST_PAGE))).toBe("CLIENT_UNKNOWN");
  });

  it("ends with its connection open: the next call is refused", async () => {
    let now = Date.now();
    const served = await serve({ now: () => now });
    const api = await served.remote(byRole.viewer);
    await api.call("Domains.List", FIRST_PAGE);
    now += 365 * 24 * 3600 * 1000;
    expect(await codeOf(api.call("Domains.List", FIRST_PAGE))).toBe("CLIENT_UNKNOWN");
  });

  it.each([
    ["is expired", { fromDays: -3, untilDays: -1 }, "its certificate is not trusted: CERT_HAS_EXPIRED"],
    ["is not valid yet", { fromDays: 1 }, "its certificate is not trusted: CERT_NOT_YET_VALID"],
    ["is a server's", { usage: "serverAuth" }, "its certificate is not trusted: INVALID_PURPOSE"],
  ] as const)("is refused if it %s", async (_, wishes, reason) => {
    const served = await serve();
    const bad = await authority.issue("administrator", wishes);
    await expect(served.remote(bad)).rejects.toMatchObject({ code: "AGENT_UNREACHABLE" });
    await expect.poll(served.audit).toEqual([expect.objectContaining({ event: "refused", reason })]);
  });

  it("is refused if another authority has signed it", async () => {
    const served = await serve();
    const others = await Authority.create(directory.file("theirs"));
    const { content } = await others.issue("administrator");
    const stranger = { content: { ...content, ca: agent.content.ca } };
    await expect(served.remote(stranger)).rejects.toMatchObject({
      code: "AGENT_UNREACHABLE",
      message: expect.stringContaining("its log says why") as string,
    });
    const reason = /not trusted: UNABLE_TO_VERIFY|not trusted: SELF_SIGNED|handshake failed/;
    await expect.poll(served.audit).toEqual([
      expect.objectContaining({
        event: "refused",
        peer: expect.stringMatching(/^127\./) as string,
        reason: expect.stringMatching(reason) as string,
      }),
    ]);
  });

  it("is needed", async () => {
    const served = await serve();
    for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
      const socket = connectTls({
        host: "127.0.0.1",
        port: served.port,
        ca: agent.content.ca,
        maxVersion,
        ALPNProtocols: ["h2"],
      });
      const error = await new Promise<unknown>((resolve) => socket.once("error", resolve));
      expect(error).toMatchObject({ code: expect.stringMatching(/^(ERR_SSL|ECONNRESET)/) as string });
    }
    await expect
      .poll(async () => (await served.audit()).map(({ reason }) => reason))
      .toEqual(["it has no certificate", "it has no certificate"]);
  });

  it("is of no use to old TLS, nor to plain text", async () => {
    const served = await serve();
    const old = connectTls({
      host: "127.0.0.1",
      port: served.port,
      ...byRole.administrator.content,
      maxVersion: "TLSv1.1",
      minVersion: "TLSv1",
      ciphers: "DEFAULT@SECLEVEL=0",
    });
    const error = await new Promise<unknown>((resolve) => old.once("error", resolve));
    expect(error).toMatchObject({ code: expect.stringMatching(/PROTOCOL|VERSION|ECONNRESET/) as string });
    const { Client, credentials } = await import("@grpc/grpc-js");
    const plain = new Client(`dns:127.0.0.1:${served.port}`, credentials.createInsecure());
    await expect(
      new Promise((resolve, reject) =>
        plain.waitForReady(Date.now() + 1000, (failure) => (failure ? reject(failure) : resolve(true))),
      ),
    ).rejects.toThrow("Failed to connect");
    plain.close();
  });
});

describe("the agent's certificate", () => {
  it("must be of the client's authority and have the agent's name", async () => {
    const nameless = await authority.issue("agent", { usage: "serverAuth", names: "DNS:elsewhere" });
    const served = await serve({ tls: nameless.content });
    await expect(served.remote(byRole.viewer)).rejects.toMatchObject({
      code: "AGENT_UNREACHABLE",
      message: expect.stringMatching(/does not match|altnames/i) as string,
    });
    const { host, content } = { host: "127.0.0.1", ...byRole.viewer };
    using unchecked = new ApiClient({ host, port: served.port, ...content });
    expect(await codeOf(unchecked.call("Domains.List", FIRST_PAGE))).toBe("AGENT_UNREACHABLE");
    // The client has ended each handshake, and has tried some again.
    const refused = { event: "refused", reason: "the TLS handshake failed: ECONNRESET" };
    await expect.poll(async () => (await served.audit()).length).toBeGreaterThan(1);
    for (const line of await served.audit()) expect(line).toMatchObject(refused);
  });
});

describe("roles", () => {
  const names = Object.keys(CALLS) as CallName[];

  it.each(names)(
    "%s may be made by the role of the table and those above it, and by no other",
    async (name) => {
      const served = await serve();
      for (const role of ROLES) {
        const api = await served.remote(byRole[role]);
        const abort = new AbortController();
        const code = await codeOf(api.call(name, requestOf(name), { signal: abort.signal }));
        const lines = (await served.audit()).filter(({ client }) => client === role);
        const facts = {
          client: role,
          role,
          fingerprint: byRole[role].fingerprint,
          subject: role,
          peer: expect.stringMatching(/^127\.0\.0\.1:\d+$/) as string,
          method: name,
        };
        if (permits(role, CALLS[name].role)) {
          expect({ role, code }).not.toEqual({ role, code: "ACCESS_DENIED" });
          const expected = CALLS[name].mutates ? ["begin", "end"] : [];
          expect(lines.map(({ event }) => event)).toEqual(expected);
          for (const line of lines) expect(line).toMatchObject(facts);
          expect(lines[1]?.["code"] ?? code).toBe(code);
          expect(lines[1]?.["call"]).toBe(lines[0]?.["call"]);
        } else {
          expect({ role, code }).toEqual({ role, code: "ACCESS_DENIED" });
          expect(lines).toEqual([expect.objectContaining({ event: "denied", code, ...facts })]);
        }
        const told = lines[0]?.["request"];
        if (lines.length > 0 && "domain" in CALLS[name].names) {
          expect(told).toMatchObject({ domain: "vm" });
        }
      }
    },
  );

  it("are looked at before the request", async () => {
    const served = await serve();
    const api = await served.remote(byRole.viewer);
    expect(await codeOf(api.call("Checkpoints.Delete", { domain: "", name: "" }))).toBe("ACCESS_DENIED");
    const operator = await served.remote(byRole.operator);
    expect(
      await codeOf(operator.call("Backups.Run", { ...requestOf("Backups.Run"), domain: "" } as never)),
    ).toBe("INVALID_NAME");
  });

  it("keep an operator from choosing where a socket of the host is made", async () => {
    const served = await serve();
    const request = { id: "b1", disks: [], socketPath: "/tmp/anywhere.sock" };
    const operator = await served.remote(byRole.operator);
    expect(await codeOf(operator.call("Backups.Serve", request))).toBe("ACCESS_DENIED");
    const administrator = await served.remote(byRole.administrator);
    expect(await codeOf(administrator.call("Backups.Serve", request))).toBe("BACKUP_NOT_FOUND");
  });

  it("of the Unix socket are as configured", async () => {
    const served = await serve({ socketRole: "viewer" });
    const api = await served.local();
    expect(await codeOf(api.call("Domains.List", FIRST_PAGE))).toBe("OK");
    expect(await codeOf(api.call("Backups.Run", requestOf("Backups.Run") as never))).toBe("ACCESS_DENIED");
    expect((await served.audit()).map((line) => without(line, "time", "call"))).toEqual([
      {
        event: "denied",
        method: "Backups.Run",
        client: "local",
        role: "viewer",
        peer: "unix",
        request: { domain: "vm", level: "LEVEL_UNSPECIFIED", disks: [] },
        code: "ACCESS_DENIED",
      },
    ]);
  });
});

describe("the owner of a block snapshot", () => {
  const CREATE = { domain: "vm", name: "s1", disks: [] };

  it("is the client that created it; others see it, and cannot change it", async () => {
    const served = await serve();
    const owner = await served.remote(byRole.operator);
    const other = await served.remote(byRole.other);
    expect(await owner.call("BlockSnapshots.Create", CREATE)).toMatchObject({ owner: "operator" });
    const at = { domain: "vm", name: "s1" };
    expect(await other.call("BlockSnapshots.Get", at)).toMatchObject({ owner: "operator" });
    const changes = [
      () => other.call("BlockSnapshots.Renew", at),
      () => other.call("BlockSnapshots.Delete", { ...at, failed: false }),
      () => other.call("BlockExports.Start", { domain: "vm", snapshot: "s1", disks: [], clients: [] }),
      () => other.call("BlockExports.Stop", { domain: "vm", snapshot: "s1" }),
    ];
    for (const change of changes) {
      await expect(change()).rejects.toMatchObject({
        code: "ACCESS_DENIED",
        facts: { domain: "vm", snapshot: "s1", owner: "operator" },
      });
    }
    const ends = (await served.audit()).filter(({ client, event }) => client === "other" && event === "end");
    expect(ends.map(({ code }) => code)).toEqual(changes.map(() => "ACCESS_DENIED"));
    await owner.call("BlockSnapshots.Renew", at);
    await owner.call("BlockExports.Start", { domain: "vm", snapshot: "s1", disks: [], clients: [] });
    await owner.call("BlockExports.Stop", { domain: "vm", snapshot: "s1" });
    expect(await owner.call("BlockSnapshots.Delete", { ...at, failed: false })).toMatchObject({ name: "s1" });
  });

  it("does not matter to an administrator, nor to a certificate of the same name", async () => {
    const served = await serve({
      clients: [...CLIENTS.slice(0, 3), { name: "operator", subject: "other", role: "operator" }],
    });
    const [owner, twin, administrator] = await Promise.all([
      served.remote(byRole.operator),
      served.remote(byRole.other),
      served.remote(byRole.administrator),
    ]);
    await owner.call("BlockSnapshots.Create", CREATE);
    await twin.call("BlockSnapshots.Renew", { domain: "vm", name: "s1" });
    await administrator.call("BlockSnapshots.Delete", { domain: "vm", name: "s1", failed: true });
  });

  it("is local for users of the Unix socket, whom other operators cannot stand for", async () => {
    const served = await serve();
    const local = await served.local();
    expect(await local.call("BlockSnapshots.Create", CREATE)).toMatchObject({ owner: "local" });
    const operator = await served.remote(byRole.operator);
    const renewed = operator.call("BlockSnapshots.Renew", { domain: "vm", name: "s1" });
    expect(await codeOf(renewed)).toBe("ACCESS_DENIED");
  });

  it("is told by the audit log, with the name that was made up", async () => {
    const served = await serve();
    const owner = await served.remote(byRole.operator);
    const { name } = await owner.call("BlockSnapshots.Create", { domain: "vm", disks: [] });
    const [, end] = await served.audit();
    expect(end).toMatchObject({ event: "end", code: "OK", result: name, request: { domain: "vm" } });
  });
});
