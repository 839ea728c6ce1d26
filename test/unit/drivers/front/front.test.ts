import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { describe, expect, it } from "vitest";
import { makeCertificates } from "../../../qemu/nbd-client-ts/support/certificates.js";
import { serverFiles, startFront } from "../../../support/front.js";
import { temporaryDirectory } from "../../../support/lifetime.js";
import { ManualClock } from "../../../support/manual-clock.js";
import { OPT, REP, REP_ERR, u16, u32 } from "../../nbd-client-ts/support/server-bytes.js";
import { contextData, goData, optionRequest, RawClient } from "./support/raw-client.js";
import { backend, echo, world } from "./support/world.js";

const INVALID = 0x80000003;

describe("NbdFront in the handshake", () => {
  it("enters a granted export by GO and carries bytes both ways, also those sent too early", async () => {
    const { port, front } = await world();
    const client = await RawClient.greeted(port);
    expect(await client.verdict(OPT.STRUCTURED_REPLY)).toBe(REP.ACK);
    await client.peer.send(Buffer.concat([optionRequest(OPT.GO, goData("open")), Buffer.from("early")]));
    await client.peer.receive(20 + 12 + 20 + 14 + 20);
    expect((await client.peer.receive(5)).toString()).toBe("early");
    await client.peer.send(Buffer.from("later"));
    expect((await client.peer.receive(5)).toString()).toBe("later");
    await expect
      .poll(() => front.stats().grants)
      .toMatchObject([{ connections: 1, connectionsTotal: 1, bytesReceived: 10, bytesSent: 10 }]);
    client.socket.destroy();
    await expect.poll(() => front.stats().connections).toBe(0);
    expect(front.stats().grants).toMatchObject([{ connections: 0, connectionsTotal: 1 }]);
  });

  it.each([
    [3, 10],
    [1, 134],
  ])("enters by EXPORT_NAME with flags %i in %i bytes", async (flags, bytes) => {
    const { port } = await world();
    const client = await RawClient.greeted(port, flags);
    await client.peer.send(optionRequest(OPT.EXPORT_NAME, Buffer.from("open")));
    const reply = await client.peer.receive(bytes);
    expect([reply.readBigUInt64BE(0), reply.readUInt16BE(8)]).toEqual([1n << 20n, 3]);
    expect(reply.subarray(10).every((byte) => byte === 0)).toBe(true);
    await client.peer.send(Buffer.from("x"));
    expect((await client.peer.receive(1)).toString()).toBe("x");
  });

  it("hangs up on EXPORT_NAME of an export that is not granted", async () => {
    const { port, log, grant } = await world();
    grant({ exportName: "secret", clients: ["Somebody"] });
    for (const name of ["secret", "nonsense"]) {
      const client = await RawClient.greeted(port);
      await client.peer.send(optionRequest(OPT.EXPORT_NAME, Buffer.from(name)));
      await client.peer.hungUp();
    }
    expect(log.reasons[0]).toBe("the export is not granted to it");
  });

  it("never connects to the backend of an export that is not granted", async () => {
    const { port, grant } = await world();
    let met = 0;
    const hidden = await backend(async (peer) => {
      met += 1;
      await echo()(peer);
    });
    const address = { socketPath: hidden.socketPath, exportName: "private" };
    grant({ exportName: "secret", clients: ["Somebody"], backend: address });
    const client = await RawClient.greeted(port);
    const listed = await client.ask(OPT.LIST);
    expect(listed.map(({ payload }) => payload.subarray(4).toString())).toEqual(["open", ""]);
    for (const option of [OPT.GO, OPT.INFO]) {
      const [secret] = await client.ask(option, goData("secret"));
      const [nonsense] = await client.ask(option, goData("nonsense"));
      expect(secret).toEqual(nonsense);
      expect(secret?.type).toBe(REP_ERR.UNKNOWN);
    }
    for (const option of [OPT.LIST_META_CONTEXT, OPT.SET_META_CONTEXT]) {
      expect(await client.verdict(option, contextData("secret", "base:"))).toBe(REP_ERR.UNKNOWN);
    }
    expect(met).toBe(0);
  });

  it("asks another backend when the client names another export, with the same replies agreed", async () => {
    const { port, grant } = await world();
    const seen: number[] = [];
    const second = await backend(async (peer) => {
      await peer.send(Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]));
      await peer.receive(4);
      seen.push((await peer.receiveOption()).option);
    });
    grant({ exportName: "second", backend: { socketPath: second.socketPath, exportName: "" } });
    const client = await RawClient.greeted(port);
    expect(await client.verdict(OPT.STRUCTURED_REPLY)).toBe(REP.ACK);
    const [context] = await client.ask(OPT.SET_META_CONTEXT, contextData("open", "base:allocation"));
    expect(context?.payload.subarray(4).toString()).toBe("base:allocation");
    await client.peer.send(optionRequest(OPT.GO, goData("second")));
    await expect.poll(() => seen).toEqual([OPT.STRUCTURED_REPLY]);
  });

  it("answers malformed and unknown options without asking the backend", async () => {
    let asked = 0;
    const { port } = await world({}, async () => {
      await Promise.resolve((asked += 1));
    });
    const client = await RawClient.greeted(port);
    const short = goData("open").subarray(0, 6);
    const long = Buffer.concat([goData("open"), Buffer.alloc(1)]);
    const tooMany = Buffer.concat([goData("open", u32(0xffffffff))]);
    for (const data of [Buffer.alloc(0), short, long, goData("open", u16(3)), goData("\u{fffd}\xff")]) {
      expect(await client.verdict(OPT.GO, data)).toBe(data.includes(0xc3) ? REP_ERR.UNKNOWN : INVALID);
    }
    expect(await client.verdict(OPT.GO, Buffer.concat([u32(1), Buffer.from([0xff, 0, 0])]))).toBe(INVALID);
    expect(await client.verdict(OPT.SET_META_CONTEXT, tooMany)).toBe(INVALID);
    expect(await client.verdict(OPT.LIST, Buffer.alloc(1))).toBe(INVALID);
    expect(await client.verdict(OPT.STRUCTURED_REPLY, Buffer.alloc(1))).toBe(INVALID);
    expect(await client.verdict(OPT.STARTTLS)).toBe(INVALID);
    expect(await client.verdict(OPT.EXTENDED_HEADERS)).toBe(REP_ERR.UNSUP);
    expect(await client.verdict(4711, Buffer.alloc(60_000))).toBe(REP_ERR.UNSUP);
    expect(await client.verdict(OPT.ABORT)).toBe(REP.ACK);
    await client.peer.hungUp();
    expect(asked).toBe(0);
  });

  it.each([
    [
      "an option that is too long",
      Buffer.concat([Buffer.from("IHAVEOPT"), u32(6), u32(65537)]),
      /65537 bytes/,
    ],
    ["something else than options", Buffer.alloc(16, 65), /something else/],
  ])("refuses %s", async (_name, bytes, reason) => {
    const { port, log } = await world();
    const client = await RawClient.greeted(port);
    await client.peer.send(bytes);
    await client.peer.hungUp();
    await expect.poll(() => log.reasons).toEqual([expect.stringMatching(reason)]);
  });

  it.each([0, 2, 7])("refuses a client with the flags %i", async (flags) => {
    const { port } = await world();
    const client = await RawClient.greeted(port, flags);
    await client.peer.hungUp();
  });

  it("refuses a client that asks without end", async () => {
    const { port, log } = await world();
    const client = await RawClient.greeted(port);
    for (let sent = 0; sent < 20; sent += 1) client.socket.write(optionRequest(99, Buffer.alloc(60_000)));
    await client.peer.hungUp();
    expect(log.reasons).toEqual(["it asks without end"]);
  });

  it("says that an export cannot be read when its backend is gone, breaks off or is writable", async () => {
    const { port, grant, log } = await world();
    grant({ exportName: "gone", backend: { socketPath: "/nonexistent/socket", exportName: "" } });
    const breaking = await backend(async (peer) => {
      await peer.send(Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]));
      await peer.receive(4 + 16);
      await peer.send(Buffer.alloc(7));
      peer.hangUp();
    });
    grant({ exportName: "breaks", backend: { socketPath: breaking.socketPath, exportName: "" } });
    const open = await backend(echo({ transmissionFlags: 1 }));
    grant({ exportName: "writable", backend: { socketPath: open.socketPath, exportName: "" } });
    const client = await RawClient.greeted(port);
    expect(await client.verdict(OPT.GO, goData("gone"))).toBe(REP_ERR.SHUTDOWN);
    expect(await client.verdict(OPT.GO, goData("breaks"))).toBe(REP_ERR.SHUTDOWN);
    expect(await client.verdict(OPT.GO, goData("writable"))).toBe(REP_ERR.POLICY);
    expect(log.reasons).toEqual([
      expect.stringContaining("ENOENT"),
      expect.stringContaining("hung up"),
      "the export is writable",
    ]);
    expect(await client.verdict(OPT.GO, goData("open"))).toBe(REP.ACK);
  });
});

describe("NbdFront with TLS", () => {
  const secured = async (options: { clock?: ManualClock } = {}) => {
    const directory = await temporaryDirectory();
    const certificates = await makeCertificates(directory.file("pki"));
    const tls = await serverFiles(certificates);
    const started = await startFront({ tls, ...options });
    started.front.grant({
      exportName: "open",
      backend: { socketPath: "/nonexistent/socket", exportName: "" },
      clients: "any",
      idleMs: 1000,
    });
    return { ...started, directory: certificates };
  };

  it("answers nothing but STARTTLS and ABORT in clear", async () => {
    const { port, log } = await secured();
    const client = await RawClient.greeted(port);
    for (const option of [OPT.LIST, OPT.STRUCTURED_REPLY, OPT.GO, OPT.INFO, OPT.SET_META_CONTEXT, 4711]) {
      expect(await client.verdict(option, goData("open"))).toBe(REP_ERR.TLS_REQD);
    }
    expect(await client.verdict(OPT.STARTTLS, Buffer.alloc(1))).toBe(INVALID);
    expect(await client.verdict(OPT.ABORT)).toBe(REP.ACK);
    const hasty = await RawClient.greeted(port);
    await hasty.peer.send(optionRequest(OPT.EXPORT_NAME, Buffer.from("open")));
    await hasty.peer.hungUp();
    expect(log.reasons).toEqual(["it asks for an export without TLS"]);
  });

  it("refuses bytes in clear behind STARTTLS, and what is no TLS after its consent", async () => {
    const { port, log } = await secured();
    const injecting = await RawClient.greeted(port);
    await injecting.peer.send(Buffer.concat([optionRequest(OPT.STARTTLS), optionRequest(OPT.LIST)]));
    await injecting.peer.hungUp();
    expect(log.reasons).toEqual(["bytes came in clear where TLS must begin"]);
    const garbage = await RawClient.greeted(port);
    expect(await garbage.verdict(OPT.STARTTLS)).toBe(REP.ACK);
    await garbage.peer.send(Buffer.concat([optionRequest(OPT.GO, goData("open")), Buffer.alloc(100, 7)]));
    await garbage.peer.hungUp();
    await expect.poll(() => log.reasons[1]).toMatch(/TLS handshake failed: ERR_SSL/);
  });

  it("refuses TLS 1.1 and renegotiation", async () => {
    // With this clock the handshake's time is never over.
    const { port, directory, log } = await secured({ clock: new ManualClock() });
    const [cert, key] = await Promise.all(
      ["client-cert.pem", "client-key.pem"].map((name) => readFile(join(directory, name))),
    );
    const handshake = async (options: object) => {
      const raw = await RawClient.greeted(port);
      await raw.verdict(OPT.STARTTLS);
      raw.socket.removeAllListeners("readable");
      return connectTls({ cert, key, ...options, socket: raw.socket, rejectUnauthorized: false });
    };
    const old = await handshake({
      maxVersion: "TLSv1.1",
      minVersion: "TLSv1",
      ciphers: "DEFAULT@SECLEVEL=0",
    });
    await expect(once(old, "secureConnect")).rejects.toThrow();
    await expect.poll(() => log.reasons).toEqual([expect.stringMatching(/UNSUPPORTED_PROTOCOL/)]);
    const twice = await handshake({ maxVersion: "TLSv1.2" });
    twice.on("error", () => undefined);
    await once(twice, "secureConnect");
    twice.renegotiate({}, () => undefined);
    await once(twice, "close");
  });

  it.each(["silent", "greeted", "in TLS"])(
    "closes a client that is %s when its time is over",
    async (state) => {
      const clock = new ManualClock();
      const { port, log, front } = await secured({ clock });
      const client = state === "silent" ? new RawClient(port) : await RawClient.greeted(port);
      await (state === "silent" ? client.peer.receive(18) : client.verdict(OPT.LIST));
      if (state === "in TLS") await client.verdict(OPT.STARTTLS);
      await clock.advance(14_999);
      expect(front.stats().connections).toBe(1);
      await clock.advance(1);
      await client.peer.hungUp();
      await expect.poll(() => log.reasons).toEqual(["it did not finish the handshake in time"]);
    },
  );
});

describe("NbdFront with limits", () => {
  it("drops connections beyond the total, and beyond a client's own, until others have ended", async () => {
    const { port, log, front } = await world({ limits: { connections: 3, connectionsPerClient: 2 } });
    const first = await RawClient.greeted(port);
    await RawClient.greeted(port);
    await new RawClient(port).peer.hungUp();
    expect(log.reasons).toEqual(["it has too many connections"]);
    first.socket.destroy();
    await expect.poll(() => front.stats().connections).toBe(1);
    expect(await (await RawClient.greeted(port)).verdict(OPT.LIST)).toBe(REP.ACK);
    const total = await world({ limits: { connections: 1 } });
    await RawClient.greeted(total.port);
    await new RawClient(total.port).peer.hungUp();
    expect(total.log.reasons).toEqual(["there are too many connections"]);
  });

  it("closes a connection after the idle time without a byte, and not before", async () => {
    const clock = new ManualClock();
    const { port, front, grant } = await world({ clock });
    grant({ exportName: "idle", idleMs: 1000, backend: { ...(await backendAddress()) } });
    const client = await RawClient.greeted(port);
    expect(await client.verdict(OPT.GO, goData("idle"))).toBe(REP.ACK);
    for (let turn = 0; turn < 3; turn += 1) {
      await client.peer.send(Buffer.from("x"));
      await client.peer.receive(1);
      await clock.advance(900);
    }
    await expect.poll(() => front.stats().grants[1]?.connections).toBe(1);
    await clock.advance(1000);
    await client.peer.hungUp();
  });

  it("carries no more than the rate, without calling that idle", async () => {
    const clock = new ManualClock();
    const { port, front, grant } = await world({ clock });
    const flood = await backend(async (peer) => {
      await peer.enter({ transmissionFlags: 3 });
      for (let piece = 0; piece < 400; piece += 1) await peer.send(Buffer.alloc(10_000));
    });
    const address = { socketPath: flood.socketPath, exportName: "private" };
    grant({ exportName: "slow", idleMs: 10, bytesPerSecond: 100_000, backend: address });
    const client = await RawClient.greeted(port);
    await client.verdict(OPT.GO, goData("slow"));
    client.socket.removeAllListeners("readable");
    client.socket.on("data", () => undefined);
    const sent = () => front.stats().grants[1]?.bytesSent ?? 0;
    await expect.poll(sent).toBeGreaterThan(0);
    // A burst, and one buffer beyond it.
    const most = 25_000 + 2 * 256 * 1024;
    await expect.poll(() => sent() < most).toBe(true);
    let elapsedSeconds = 0;
    while (sent() < 2_000_000 && elapsedSeconds < 60) {
      await clock.advance(500);
      await new Promise((resolve) => setTimeout(resolve, 5));
      elapsedSeconds += 0.5;
      expect(sent()).toBeLessThan(most + elapsedSeconds * 100_000);
    }
    expect(sent()).toBeGreaterThanOrEqual(2_000_000);
  });

  it("holds little for a client that does not read", async () => {
    let written = 0;
    const { port } = await world({}, async (peer) => {
      await peer.enter({ transmissionFlags: 3 });
      for (; written < 100; written += 1) await peer.send(Buffer.alloc(1 << 20));
    });
    const client = await RawClient.greeted(port);
    await client.verdict(OPT.GO, goData("open"));
    client.socket.pause();
    client.socket.removeAllListeners("readable");
    let before = -1;
    while (before !== written) {
      before = written;
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
    // Buffers of the kernel, and three of ours.
    expect(written).toBeLessThan(16);
  });
});

async function backendAddress(): Promise<{ socketPath: string; exportName: string }> {
  return { socketPath: (await backend()).socketPath, exportName: "private" };
}
