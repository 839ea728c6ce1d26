import { chmod } from "node:fs/promises";
import { createServer } from "node:net";
import { describe, expect, it } from "vitest";
import { connectQmp, type QmpWarning } from "../../../src/qmp/index.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { failureOf, fakeSession, type FakePeer, FakeServer, greetingLine } from "./fake-server.js";

/** Connects to a server that behaves as told, and gives the failure. */
async function failureWith(
  behave: (peer: FakePeer) => void,
  options: { connectTimeoutMs?: number; maxLineBytes?: number; signal?: AbortSignal } = {},
): Promise<unknown> {
  const server = await FakeServer.start(behave);
  return await failureOf(connectQmp({ socketPath: server.socketPath, ...options }));
}

function textWith(part: string): string {
  return expect.stringContaining(part) as string;
}

describe("connectQmp", () => {
  it("gives QEMU's version from the greeting", async () => {
    const { session } = await fakeSession();
    expect(session.version).toEqual({ major: 7, minor: 2, micro: 22, package: "fake" });
  });

  it("reports each change of state once, in order", async () => {
    const states: string[] = [];
    const { session } = await fakeSession({ onStateChange: (from, to) => states.push(`${from}>${to}`) });
    await session.close();
    expect(states).toEqual([
      "greeting>negotiating",
      "negotiating>running",
      "running>closing",
      "closing>closed",
    ]);
  });

  it("does not negotiate out-of-band execution", async () => {
    let enabled: unknown = "unset";
    const failure = await failureWith((peer) => {
      peer.sendRaw(`${greetingLine}\n`);
      void peer.command().then((command) => {
        enabled = command.arguments;
        peer.socket.destroy();
      });
    });
    expect(enabled).toBeUndefined();
    expect(failure).toMatchObject({ code: "QMP_DISCONNECTED" });
  });

  it("tells an absent socket", async () => {
    const directory = await temporaryDirectory();
    const socketPath = directory.file("none");
    expect(await failureOf(connectQmp({ socketPath }))).toMatchObject({
      code: "QMP_SOCKET_ABSENT",
      socketPath,
      cause: { code: "ENOENT" },
    });
  });

  it("tells a socket without a listener", async () => {
    const directory = await temporaryDirectory();
    const socketPath = directory.file("stale");
    // Closing the server removes its socket, so the socket is left behind under another name.
    const server = createServer().listen(directory.file("listening"));
    await new Promise((resolve) => server.once("listening", resolve));
    const { rename } = await import("node:fs/promises");
    await rename(directory.file("listening"), socketPath);
    await new Promise((resolve) => server.close(resolve));
    expect(await failureOf(connectQmp({ socketPath }))).toMatchObject({ code: "QMP_REFUSED", socketPath });
  });

  it.skipIf(process.getuid?.() === 0)("tells a socket that may not be opened", async () => {
    const server = await FakeServer.start((peer) => void peer.handshake());
    await chmod(server.socketPath, 0o000);
    expect(await failureOf(connectQmp({ socketPath: server.socketPath }))).toMatchObject({
      code: "QMP_PERMISSION",
    });
  });

  it.each(["", "/tmp/".padEnd(108, "x"), "/tmp/a\0b"])(
    "refuses the impossible path %j",
    async (socketPath) => {
      expect(await failureOf(connectQmp({ socketPath }))).toMatchObject({ code: "QMP_ARGUMENT" });
    },
  );

  it("says that another client may hold the monitor when no greeting comes", async () => {
    expect(await failureWith(() => undefined, { connectTimeoutMs: 50 })).toMatchObject({
      code: "QMP_NO_GREETING",
      message: textWith("another client may hold the monitor"),
    });
  });

  it("tells a server that greets and then hangs from one that never greets", async () => {
    const greet = (peer: FakePeer): void => peer.sendRaw(`${greetingLine}\r\n`);
    expect(await failureWith(greet, { connectTimeoutMs: 50 })).toMatchObject({ code: "QMP_TIMEOUT" });
  });

  it.each(["SSH-2.0-OpenSSH_9.2\r\n", '{"jsonrpc": "2.0"}\n', '{"return": {}}\n', "\xff\xfe\x00\n"])(
    "tells a peer that answers %j from a QMP server",
    async (text) => {
      const answer = (peer: FakePeer): void => peer.sendRaw(Buffer.from(text, "latin1"));
      expect(await failureWith(answer)).toMatchObject({ code: "QMP_NOT_QMP" });
    },
  );

  it("names pretty-printing when the greeting comes on many lines", async () => {
    const pretty = JSON.stringify(JSON.parse(greetingLine), undefined, 4).replaceAll("\n", "\r\n");
    expect(await failureWith((peer) => peer.sendRaw(`${pretty}\r\n`))).toMatchObject({
      code: "QMP_NOT_QMP",
      message: textWith("pretty=on"),
    });
  });

  it("drops what QEMU still had to say to the client before", async () => {
    const warnings: QmpWarning[] = [];
    const server = await FakeServer.start((peer) => {
      peer.send({ return: {}, id: "someone-else-1" });
      peer.sendEvent("STOP");
      void peer.handshake();
    });
    const onWarning = (warning: QmpWarning): unknown => warnings.push(warning);
    await using session = await connectQmp({ socketPath: server.socketPath, onWarning });
    expect(session.version.major).toBe(7);
    expect(warnings).toEqual([{ kind: "unknown-reply", id: "someone-else-1", count: 1 }]);
  });

  it("never uses the id of another session", async () => {
    const ids = new Set<string>();
    for (let round = 0; round < 3; round += 1) {
      const { session, peer } = await fakeSession();
      const call = session.execute("stop");
      ids.add((await peer.answer("stop")).id);
      await call;
    }
    expect(ids.size).toBe(3);
  });

  it("connects again when the server greets twice, but not for ever", async () => {
    let connections = 0;
    const greetTwice = (peer: FakePeer): void => peer.sendRaw(`${greetingLine}\n${greetingLine}\n`);
    const server = await FakeServer.start((peer) => {
      connections += 1;
      if (connections === 1) greetTwice(peer);
      else void peer.handshake();
    });
    await using session = await connectQmp({ socketPath: server.socketPath });
    expect(session.version.major).toBe(7);
    expect(connections).toBe(2);
    expect(await failureWith(greetTwice)).toMatchObject({
      code: "QMP_PROTOCOL",
      message: textWith("second greeting"),
    });
  });

  it("connects again when the server loses the first command after its greeting", async () => {
    let connections = 0;
    const server = await FakeServer.start((peer) => {
      connections += 1;
      if (connections === 1) peer.sendRaw(`${greetingLine}\n`);
      else void peer.handshake();
    });
    await using session = await connectQmp({ socketPath: server.socketPath, connectTimeoutMs: 20_000 });
    expect(session.version.major).toBe(7);
    expect(connections).toBe(2);
  });

  it("bounds what it buffers from a peer that never ends its line", async () => {
    const flood = (peer: FakePeer): void => peer.sendRaw("x".repeat(5000));
    expect(await failureWith(flood, { maxLineBytes: 4096 })).toMatchObject({ code: "QMP_LINE_TOO_LONG" });
  });

  it("tells a peer that hangs up before its greeting", async () => {
    expect(await failureWith((peer) => peer.socket.end())).toMatchObject({
      code: "QMP_DISCONNECTED",
      message: textWith("before its greeting"),
    });
  });

  it("reports a refusal of the capabilities with QEMU's text", async () => {
    const refuse = (peer: FakePeer): void => {
      peer.sendRaw(`${greetingLine}\n`);
      void peer.command().then(({ id }) => peer.send({ error: { class: "GenericError", desc: "no" }, id }));
    };
    expect(await failureWith(refuse)).toMatchObject({
      code: "QMP_COMMAND_FAILED",
      cause: { qemuText: "no" },
    });
  });

  it("stops at once when the signal has fired before, and when it fires meanwhile", async () => {
    const reason = new Error("enough");
    const never = (): void => undefined;
    expect(await failureWith(never, { signal: AbortSignal.abort(reason) })).toMatchObject({
      code: "QMP_ABORTED",
      cause: reason,
    });
    const controller = new AbortController();
    const onConnected = (): void => controller.abort(reason);
    expect(await failureWith(onConnected, { signal: controller.signal })).toMatchObject({
      code: "QMP_ABORTED",
      cause: reason,
    });
  });

  it("leaves the connection closed after a failure", async () => {
    let hungUp: Promise<void> | undefined;
    await failureWith(
      (peer) => {
        hungUp = new Promise((resolve) => peer.socket.once("close", () => resolve()));
        peer.socket.resume();
      },
      { connectTimeoutMs: 50 },
    );
    await hungUp;
    expect(hungUp).toBeDefined();
  });
});
