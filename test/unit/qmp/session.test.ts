import { describe, expect, it } from "vitest";
import { isEvent, type QmpEvent, type QmpWarning } from "../../../src/qmp/index.js";
import { failureOf, fakeSession } from "./fake-server.js";

describe("QmpSession.execute", () => {
  it("sends ids of its own and matches replies that come out of order", async () => {
    const { session, peer } = await fakeSession();
    const first = session.execute("query-name");
    const second = session.execute("query-uuid");
    const [nameCall, uuidCall] = [await peer.command(), await peer.command()];
    expect(typeof nameCall.id).toBe("string");
    expect(nameCall.id).not.toBe(uuidCall.id);
    peer.send({ return: { UUID: "u" }, id: uuidCall.id });
    peer.send({ return: { name: "n" }, id: nameCall.id });
    expect(await Promise.all([first, second])).toEqual([{ name: "n" }, { UUID: "u" }]);
  });

  it("leaves arguments out where there are none", async () => {
    const { session, peer } = await fakeSession();
    const done = session.execute("stop");
    expect(await peer.answer("stop")).not.toHaveProperty("arguments");
    await done;
  });

  it("fails only its own call when the server answers with an error", async () => {
    const { session, peer } = await fakeSession();
    const bad = failureOf(session.execute("blockdev-del", { "node-name": "x" }));
    const good = session.execute("query-jobs");
    const { id } = await peer.command();
    peer.send({ error: { class: "GenericError", desc: "Failed to find node with node-name='x'" }, id });
    await peer.answer("query-jobs", []);
    expect(await bad).toMatchObject({
      code: "QMP_COMMAND_FAILED",
      command: "blockdev-del",
      qmpClass: "GenericError",
      qemuText: "Failed to find node with node-name='x'",
    });
    expect(await good).toEqual([]);
  });

  it("reads a reply whose characters are split over packets", async () => {
    const { session, peer } = await fakeSession();
    const name = session.execute("query-name");
    const { id } = await peer.command();
    const bytes = Buffer.from(`${JSON.stringify({ return: { name: "Bär 😀" }, id })}\r\n`);
    peer.socket.setNoDelay(true);
    for (const byte of bytes) {
      peer.sendRaw(Uint8Array.of(byte));
      await new Promise(setImmediate);
    }
    expect(await name).toEqual({ name: "Bär 😀" });
  });

  it("fails with a timeout, drops the late reply silently and goes on", async () => {
    const warnings: QmpWarning[] = [];
    const { session, peer } = await fakeSession({ onWarning: (warning) => warnings.push(warning) });
    const late = await failureOf(session.execute("query-jobs", undefined, { timeoutMs: 20 }));
    expect(late).toMatchObject({ code: "QMP_TIMEOUT", command: "query-jobs" });
    await peer.answer("query-jobs", [1]);
    const next = session.execute("query-jobs");
    await peer.answer("query-jobs", []);
    expect(await next).toEqual([]);
    expect(warnings).toEqual([]);
  });

  it("takes its deadline from the session unless it has its own", async () => {
    const { session } = await fakeSession({ commandTimeoutMs: 20 });
    expect(await failureOf(session.execute("query-jobs"))).toMatchObject({ code: "QMP_TIMEOUT" });
  });

  it("stops waiting when the signal fires, and sends nothing if it has fired before", async () => {
    const { session, peer } = await fakeSession();
    const controller = new AbortController();
    const waiting = failureOf(session.execute("stop", undefined, { signal: controller.signal }));
    await peer.command();
    controller.abort("enough");
    expect(await waiting).toMatchObject({ code: "QMP_ABORTED", cause: "enough" });
    const refused = failureOf(session.execute("quit", undefined, { signal: controller.signal }));
    expect(await refused).toMatchObject({ code: "QMP_ABORTED" });
    const next = session.execute("cont");
    await peer.answer("cont");
    await next;
  });

  it("fails an argument that JSON cannot carry, and the session goes on", async () => {
    const { session, peer } = await fakeSession();
    const failure = await failureOf(session.execute("blockdev-add", { driver: "null-co", size: 2 ** 60 }));
    expect(failure).toMatchObject({ code: "QMP_ARGUMENT" });
    const next = session.execute("cont");
    await peer.answer("cont");
    await next;
  });
});

describe("QmpSession, when the peer misbehaves", () => {
  it("drops replies to unknown ids, counts them and goes on", async () => {
    const warnings: QmpWarning[] = [];
    const { session, peer } = await fakeSession({ onWarning: (warning) => warnings.push(warning) });
    peer.send({ return: {}, id: "stranger" });
    peer.send({ error: { class: "C", desc: "d" }, id: 7 });
    const next = session.execute("cont");
    await peer.answer("cont");
    await next;
    expect(warnings).toEqual([
      { kind: "unknown-reply", id: "stranger", count: 1 },
      { kind: "unknown-reply", id: 7, count: 2 },
    ]);
  });

  it("takes a reply once: its repetition is an unknown one", async () => {
    const warnings: QmpWarning[] = [];
    const { session, peer } = await fakeSession({ onWarning: (warning) => warnings.push(warning) });
    const first = session.execute("cont");
    const { id } = await peer.answer("cont");
    await first;
    peer.send({ return: {}, id });
    const next = session.execute("cont");
    await peer.answer("cont");
    await next;
    expect(warnings).toEqual([{ kind: "unknown-reply", id, count: 1 }]);
  });

  it("takes nothing more from a peer that broke the protocol", async () => {
    const { session, peer } = await fakeSession();
    const seen: string[] = [];
    session.onEvent((event) => seen.push(event.event));
    const event = { event: "STOP", timestamp: { seconds: 1, microseconds: 0 } };
    peer.sendRaw(`nonsense\n${JSON.stringify(event)}\n`);
    await session.closed;
    expect(seen).toEqual([]);
  });

  it.each([
    ["an error reply without an id", '{"error": {"class": "GenericError", "desc": "JSON parse error"}}'],
    ["a line that is no JSON", "nonsense"],
    ["a second greeting", '{"QMP": {"version": {"qemu": {"major": 1, "minor": 0, "micro": 0}}}}'],
  ])("ends with a protocol error on %s", async (_, line) => {
    const { session, peer } = await fakeSession();
    const pending = failureOf(session.execute("stop"));
    peer.sendRaw(`${line}\n`);
    expect(await pending).toMatchObject({ code: "QMP_PROTOCOL", command: "stop" });
    expect(await session.closed).toMatchObject({ code: "QMP_PROTOCOL" });
  });

  it("ends when a message exceeds the limit", async () => {
    const { session, peer } = await fakeSession({ maxLineBytes: 4096 });
    const pending = failureOf(session.execute("query-jobs"));
    peer.sendRaw(`{"return": "${"x".repeat(5000)}`);
    expect(await pending).toMatchObject({ code: "QMP_LINE_TOO_LONG" });
  });

  it("fails every pending call, and later ones, with the first cause", async () => {
    const { session, peer } = await fakeSession();
    const calls = [failureOf(session.execute("stop")), failureOf(session.execute("cont"))];
    await peer.command();
    peer.sendRaw('nonsense\nmore nonsense\n{"return');
    peer.socket.end();
    const cause = await session.closed;
    expect(cause.code).toBe("QMP_PROTOCOL");
    for (const failure of await Promise.all(calls))
      expect(failure).toMatchObject({ code: "QMP_PROTOCOL", cause });
    expect(await failureOf(session.execute("quit"))).toMatchObject({ code: "QMP_PROTOCOL", cause });
    await session.close();
    expect(await session.closed).toBe(cause);
  });

  it("says how far a message had come when the connection was cut", async () => {
    const { session, peer } = await fakeSession();
    peer.socket.end('{"return"');
    expect(await session.closed).toMatchObject({
      code: "QMP_DISCONNECTED",
      message: expect.stringContaining("after 9 bytes") as unknown,
    });
  });
});

describe("QmpSession.close", () => {
  it("is idempotent and fails pending calls and event waits", async () => {
    const { session } = await fakeSession();
    const call = failureOf(session.execute("stop"));
    const wait = failureOf(session.waitForEvent(() => true, {}));
    await Promise.all([session.close(), session.close()]);
    await session[Symbol.asyncDispose]();
    expect(await call).toMatchObject({ code: "QMP_CLOSED" });
    expect(await wait).toMatchObject({ code: "QMP_CLOSED" });
    expect(await session.closed).toMatchObject({ code: "QMP_CLOSED" });
  });
});

describe("QmpSession, on events", () => {
  it("delivers events that come between a command and its reply, in order, until told to stop", async () => {
    const { session, peer } = await fakeSession();
    const seen: string[] = [];
    const stop = session.onEvent((event) => seen.push(event.event));
    const call = session.execute("stop");
    const { id } = await peer.command();
    peer.sendEvent("STOP");
    peer.sendEvent("SOMETHING_NEW", { a: 1 });
    peer.send({ return: {}, id });
    await call;
    stop();
    peer.sendEvent("RESUME");
    const next = session.execute("cont");
    await peer.answer("cont");
    await next;
    expect(seen).toEqual(["STOP", "SOMETHING_NEW"]);
  });

  it("reports a listener that throws and still calls the others", async () => {
    const warnings: QmpWarning[] = [];
    const { session, peer } = await fakeSession({ onWarning: (warning) => warnings.push(warning) });
    const error = new Error("bug");
    session.onEvent(() => {
      throw error;
    });
    const seen = session.waitForEvent((event) => event.event === "STOP", { timeoutMs: 10_000 });
    peer.sendEvent("STOP");
    await seen;
    expect(warnings).toEqual([{ kind: "listener-failed", event: "STOP", error }]);
  });

  it("waits for the event that fits, and knows its data's type", async () => {
    const { session, peer } = await fakeSession();
    const isMine = (event: QmpEvent) => isEvent(event, "BLOCK_EXPORT_DELETED") && event.data.id === "mine";
    const found = session.waitForEvent(isMine, { timeoutMs: 10_000 });
    peer.sendEvent("BLOCK_EXPORT_DELETED", { id: "other" });
    peer.sendEvent("BLOCK_EXPORT_DELETED", { id: "mine" });
    expect((await found).data).toEqual({ id: "mine" });
  });

  it("gives up waiting at the deadline and when the signal fires", async () => {
    const { session } = await fakeSession();
    const never = (): boolean => false;
    const timeout = failureOf(session.waitForEvent(never, { timeoutMs: 20 }));
    const abort = failureOf(session.waitForEvent(never, { signal: AbortSignal.abort("enough") }));
    expect(await timeout).toMatchObject({ code: "QMP_TIMEOUT" });
    expect(await abort).toMatchObject({ code: "QMP_ABORTED", cause: "enough" });
  });
});
