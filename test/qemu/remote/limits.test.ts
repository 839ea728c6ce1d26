import { connect as connectHttp2, constants } from "node:http2";
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { AuditLog } from "../../../src/ports/audit-log.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { Authority, type Credentials } from "../../support/authority.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { FIRST_PAGE } from "../../support/first-page.js";
import { serveApi } from "../../support/served-api.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";

let directory: TemporaryDirectory;
let agent: Credentials;
let alice: Credentials;
let bob: Credentials;

beforeAll(async () => {
  directory = await TemporaryDirectory.create();
  const authority = await Authority.create(directory.path);
  agent = await authority.issue("agent", { usage: "serverAuth", names: "IP:127.0.0.1" });
  alice = await authority.issue("alice");
  bob = await authority.issue("bob");
});
afterAll(() => directory[Symbol.asyncDispose]());

const serve = (options: Parameters<typeof serveApi>[0] = {}) =>
  serveApi({
    tls: agent.content,
    clients: ["alice", "bob"].map((name) => ({ name, subject: name, role: "operator" })),
    ...options,
  });

const RUN = { domain: "vm", level: "LEVEL_UNSPECIFIED", disks: [] } as const;

/** A backup stops in its work until the test lets it go on. */
function barrier() {
  let reach: () => void = () => undefined;
  let open: () => void = () => undefined;
  const reached = new Promise<void>((resolve) => (reach = resolve));
  const opened = new Promise<void>((resolve) => (open = resolve));
  const gate = async (at: string): Promise<void> => {
    if (at !== "add access: after") return;
    reach();
    await opened;
  };
  return { gate, reached, open };
}

function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    socket.on("error", () => undefined);
    socket.resume();
    socket.once("close", () => resolve());
  });
}

describe("calls at a time", () => {
  it("are bounded for each client, and one too many fails at once; another client goes on", async () => {
    const { gate, reached, open } = barrier();
    const served = await serve({ gate, limits: { callsPerClient: 1 } });
    const [first, second, other] = [
      await served.remote(alice),
      await served.remote(alice),
      await served.remote(bob),
    ];
    const running = first.call("Backups.Run", RUN);
    await reached;
    await expect(second.call("Domains.List", FIRST_PAGE)).rejects.toMatchObject({ code: "TOO_MANY_CALLS" });
    await other.call("BlockExports.List", {});
    open();
    await running;
    await second.call("BlockExports.List", {});
    const refused = (await served.audit()).filter(({ event }) => event === "refused");
    expect(refused).toEqual([expect.objectContaining({ code: "TOO_MANY_CALLS", method: "Domains.List" })]);
  });

  it("are bounded in all, local ones too", async () => {
    const { gate, reached, open } = barrier();
    const served = await serve({ gate, limits: { calls: 1 } });
    const running = (await served.remote(alice)).call("Backups.Run", RUN);
    await reached;
    const local = await served.local();
    await expect(local.call("Domains.List", FIRST_PAGE)).rejects.toMatchObject({ code: "TOO_MANY_CALLS" });
    open();
    await running;
    await local.call("BlockExports.List", {});
  });

  it("count until a cancelled call has undone its work", async () => {
    const { gate, reached, open } = barrier();
    const served = await serve({ gate, limits: { callsPerClient: 1 } });
    const api = await served.remote(alice);
    const controller = new AbortController();
    const running = api.call("Backups.Run", RUN, { signal: controller.signal });
    await reached;
    controller.abort(new Error("enough"));
    await expect(running).rejects.toThrow("enough");
    await expect(api.call("Domains.List", FIRST_PAGE)).rejects.toMatchObject({ code: "TOO_MANY_CALLS" });
    open();
    await expect
      .poll(() => api.call("BlockExports.List", {}).catch((error: unknown) => error))
      .toEqual({ exports: [] });
    const ends = async () => (await served.audit()).filter(({ event }) => event === "end");
    await expect
      .poll(ends)
      .toContainEqual(expect.objectContaining({ method: "Backups.Run", code: "INTERRUPTED" }));
  });
});

describe("connections at a time", () => {
  it("are bounded for each certificate; those of others are let in", async () => {
    const served = await serve({ limits: { connectionsPerClient: 1 } });
    const options = { host: "127.0.0.1", port: served.port, ALPNProtocols: ["h2"] };
    const first = connectTls({ ...options, ...alice.content });
    await new Promise((resolve) => first.once("data", resolve));
    await expect(served.remote(alice)).rejects.toMatchObject({ code: "AGENT_UNREACHABLE" });
    await expect
      .poll(served.audit)
      .toEqual([
        expect.objectContaining({ event: "refused", subject: "alice", reason: "it has 1 connections" }),
      ]);
    const other = connectTls({ ...options, ...bob.content });
    await new Promise((resolve) => other.once("data", resolve));
    first.destroy();
    other.destroy();
    await expect
      .poll(() => served.remote(alice).then((api) => api.call("Domains.List", FIRST_PAGE)))
      .toMatchObject({ domains: [{ name: "vm" }] });
  });

  it("are bounded in all on the Unix socket", async () => {
    const served = await serve({ limits: { connections: 1 } });
    const first = connect(served.socket);
    await new Promise((resolve) => first.once("data", resolve));
    await closed(connect(served.socket));
    await expect
      .poll(served.audit)
      .toEqual([
        expect.objectContaining({ event: "refused", peer: "unix", reason: "there are 1 connections" }),
      ]);
    first.destroy();
  });

  it("that stay silent do not keep a client out", async () => {
    const served = await serve();
    const silent = Array.from({ length: 100 }, () => connect({ host: "127.0.0.1", port: served.port }));
    const gone = silent.map((socket) => closed(socket));
    await Promise.race(gone);
    const api = await served.remote(alice);
    expect(await api.call("Domains.List", FIRST_PAGE)).toMatchObject({ domains: [{ name: "vm" }] });
    // The rest of them has 10 seconds; here they end with the agent.
    await served.server.close(0);
    await Promise.all(gone);
  });
});

describe("HTTP/2", () => {
  const post = async (headers: Record<string, string>, body: Buffer) => {
    const served = await serve();
    const session = connectHttp2(`https://127.0.0.1:${served.port}`, {
      ...alice.content,
      // What Node itself would not send.
      maxSendHeaderBlockLength: 2 ** 24,
    });
    const stream = session.request({
      ":method": "POST",
      ":path": "/fleece.v1.Domains/List",
      "content-type": "application/grpc",
      te: "trailers",
      ...headers,
    });
    let status: unknown;
    const note = (received: Record<string, unknown>): void => void (status ??= received["grpc-status"]);
    stream.on("response", note);
    stream.on("trailers", note);
    stream.on("error", () => undefined);
    stream.resume();
    stream.end(body);
    await new Promise((resolve) => stream.once("close", resolve));
    const { rstCode } = stream;
    session.destroy();
    // Whatever came, the agent lives.
    expect(await (await served.remote(alice)).call("Domains.List", FIRST_PAGE)).toMatchObject({
      domains: [{}],
    });
    return { status, rstCode };
  };
  const framed = (length: number, claimed = length): Buffer => {
    const head = Buffer.alloc(5);
    head.writeUInt32BE(claimed, 1);
    return Buffer.concat([head, Buffer.alloc(length)]);
  };
  const RESOURCE_EXHAUSTED = "8";

  it("carries a call", async () => {
    expect(await post({}, framed(0))).toMatchObject({ status: "0" });
  });

  it("carries no message of more than 1 MiB, whatever its length is said to be", async () => {
    expect(await post({}, framed(1024 * 1024 + 1))).toMatchObject({ status: RESOURCE_EXHAUSTED });
    expect(await post({}, framed(0, 2 ** 32 - 1))).toMatchObject({ status: RESOURCE_EXHAUSTED });
  });

  it("carries no metadata of more than 16 KiB or 128 lines", async () => {
    const long = await post({ "x-long": "x".repeat(17_000) }, framed(0));
    expect(long).toMatchObject({ status: RESOURCE_EXHAUSTED });
    const many = Object.fromEntries(Array.from({ length: 130 }, (_, index) => [`x-${index}`, "y"]));
    const refused = await post(many, framed(0));
    expect(refused).toEqual({ status: undefined, rstCode: constants.NGHTTP2_ENHANCE_YOUR_CALM });
  });
});

describe("the audit log", () => {
  it("must be writable for a change, but not for a look", async () => {
    const failing: AuditLog = {
      write: () => Promise.reject(new FleeceError("AUDIT_FAILED", "Nothing may be changed now")),
    };
    const served = await serve({ audit: failing });
    const api = await served.remote(alice);
    const before = await served.world.traces();
    await expect(api.call("Backups.Run", RUN)).rejects.toMatchObject({ code: "AUDIT_FAILED" });
    expect(await served.world.traces()).toEqual(before);
    expect(await api.call("Domains.List", FIRST_PAGE)).toMatchObject({ domains: [{ name: "vm" }] });
  });

  it("that fails at a call's end is said in the log, and refuses the next change", async () => {
    let isBroken = false;
    const { path } = await temporaryDirectory();
    const flaky: AuditLog = {
      write: ({ event }) => {
        isBroken ||= event === "end";
        const failure = new FleeceError("AUDIT_FAILED", `Cannot write ${path}`);
        return isBroken ? Promise.reject(failure) : Promise.resolve();
      },
    };
    const served = await serve({ audit: flaky });
    const api = await served.remote(alice);
    await api.call("Backups.Run", RUN);
    expect(served.world.log).toContain(`The audit log lacks a line: Cannot write ${path}`);
    await expect(api.call("Backups.Run", RUN)).rejects.toMatchObject({ code: "AUDIT_FAILED" });
  });

  it("has one line for each of a few refusals, and a count of the rest", async () => {
    let now = 0;
    const served = await serve({ now: () => Date.now(), clients: [], monotonicMs: () => now });
    const api = await served.remote(alice);
    for (let n = 0; n < 70; n++) await api.call("Domains.List", FIRST_PAGE).catch(() => undefined);
    expect(await served.audit()).toHaveLength(60);
    now += 60_000;
    await api.call("Domains.List", FIRST_PAGE).catch(() => undefined);
    const lines = await served.audit();
    expect(lines).toHaveLength(61);
    expect(lines[60]).toMatchObject({ event: "refused", leftOutBefore: 10 });
  });
});
