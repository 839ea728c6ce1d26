import { writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { connectNbd, describeExport, listExports, type NbdTlsOptions } from "nbd-client-ts";
import { temporaryDirectory } from "../../support/lifetime.js";
import { failureOf, serving } from "./support/connected.js";
import type { Peer } from "./support/scripted-server.js";
import {
  ALL_FLAGS,
  greeting,
  OPT,
  optionReply,
  REP,
  REP_ERR,
  u16,
  u32,
  u64,
} from "./support/server-bytes.js";

/** Greets and answers the first option; remembers all options that came in clear. */
function answering(seen: number[], ...replies: Buffer[]): (peer: Peer) => Promise<void> {
  return async (peer) => {
    await peer.send(greeting());
    await peer.receive(4);
    const { option } = await peer.receiveOption();
    seen.push(option);
    await peer.send(Buffer.concat(replies));
    for (;;) seen.push((await peer.receiveOption()).option);
  };
}

const ack = optionReply(OPT.STARTTLS, REP.ACK);
const refused = (error: number) => optionReply(OPT.STARTTLS, error, Buffer.from("not here"));

async function failureWith(
  script: (peer: Peer) => Promise<void>,
  tls: NbdTlsOptions = {},
  more: object = {},
) {
  const server = await serving(script);
  return await failureOf(connectNbd({ socketPath: server.socketPath, exportName: "secret", tls, ...more }));
}

describe("connectNbd with TLS refuses a server that", () => {
  const culprits: readonly [culprit: string, code: string, replies: Buffer[]][] = [
    ["does not know STARTTLS", "TLS_NOT_OFFERED", [refused(REP_ERR.UNSUP)]],
    ["forbids STARTTLS", "TLS_NOT_OFFERED", [refused(REP_ERR.POLICY)]],
    ["answers STARTTLS with an unknown error", "TLS_NOT_OFFERED", [refused(0x8000ffff)]],
    ["shuts down", "SERVER_SHUTTING_DOWN", [refused(REP_ERR.SHUTDOWN)]],
    ["answers STARTTLS with an unknown type", "BAD_REPLY", [optionReply(OPT.STARTTLS, 77)]],
    ["acknowledges STARTTLS with a payload", "BAD_REPLY", [optionReply(OPT.STARTTLS, REP.ACK, u32(1))]],
    ["acknowledges another option", "BAD_REPLY", [optionReply(OPT.GO, REP.ACK)]],
    ["sends one byte in clear after its consent", "TLS_INJECTION", [ack, Buffer.from([0x16])]],
    [
      "sends option replies in clear after its consent",
      "TLS_INJECTION",
      [ack, optionReply(OPT.STRUCTURED_REPLY, REP.ACK)],
    ],
    ["sends bytes in clear after its refusal", "TLS_NOT_OFFERED", [refused(REP_ERR.UNSUP), Buffer.alloc(20)]],
  ];

  it.each(culprits)("%s (%s), and says nothing in clear but STARTTLS", async (_culprit, code, replies) => {
    const seen: number[] = [];
    const failure = await failureWith(answering(seen, ...replies));
    expect(failure).toMatchObject({ code, scope: "connection" });
    expect(seen.filter((option) => option !== OPT.ABORT)).toEqual([OPT.STARTTLS]);
  });

  it("is not fixed newstyle, without a word of the export", async () => {
    let received = Buffer.alloc(0);
    const failure = await failureWith(async (peer) => {
      await peer.send(greeting(2), u64(4096), u16(ALL_FLAGS));
      for (;;) received = Buffer.concat([received, await peer.receive(1)]);
    });
    expect(failure).toMatchObject({ code: "TLS_NOT_OFFERED" });
    expect(received.includes("secret")).toBe(false);
  });

  it("speaks the oldstyle protocol", async () => {
    const failure = await failureWith(async (peer) => {
      await peer.send(Buffer.from("NBDMAGIC"), u64(0x00420281861253n));
      await peer.hungUp();
    });
    expect(failure).toMatchObject({ code: "UNSUPPORTED_SERVER" });
  });

  it("goes on in clear a while after its consent", async () => {
    const failure = await failureWith(async (peer) => {
      await peer.send(greeting());
      await peer.receive(4);
      await peer.receiveOption();
      await peer.send(ack);
      await peer.receive(5); // the TLS handshake has begun
      await peer.send(optionReply(OPT.STRUCTURED_REPLY, REP.ACK));
      await peer.hungUp();
    });
    expect(failure).toMatchObject({ code: "TLS_FAILED" });
  });

  it("is silent in the TLS handshake", async () => {
    const failure = await failureWith(answering([], ack), {}, { connectTimeoutMs: 100 });
    expect(failure).toMatchObject({ code: "TIMEOUT" });
  });

  it("hangs up in the TLS handshake", async () => {
    const failure = await failureWith(async (peer) => {
      await peer.send(greeting());
      await peer.receive(4);
      await peer.receiveOption();
      await peer.send(ack);
      peer.hangUp();
    });
    expect(failure).toMatchObject({ code: "TLS_FAILED", cause: { code: "ECONNRESET" } });
  });

  it("hangs up instead of answering STARTTLS", async () => {
    const failure = await failureWith(async (peer) => {
      await peer.send(greeting());
      await peer.receive(4);
      await peer.receiveOption();
      peer.hangUp();
    });
    expect(failure).toMatchObject({ code: "CONNECTION_LOST" });
  });
});

describe("connectNbd with TLS", () => {
  it("stops at once when its signal aborts in the TLS handshake", async () => {
    const controller = new AbortController();
    const failure = await failureWith(
      async (peer) => {
        await peer.send(greeting());
        await peer.receive(4);
        await peer.receiveOption();
        await peer.send(ack);
        await peer.receive(5);
        controller.abort("enough");
        await peer.hungUp();
      },
      {},
      { signal: controller.signal },
    );
    expect(failure).toMatchObject({ code: "ABORTED", cause: "enough" });
  });

  it("goes on in clear with a server without TLS in the mode allow, and only then", async () => {
    const server = await serving(async (peer) => {
      await peer.enter();
      await peer.hungUp();
    });
    const options = { socketPath: server.socketPath, exportName: "disk" };
    const connection = await connectNbd({ ...options, tls: { mode: "allow" } });
    expect(connection.sizeBytes).toBe(1 << 20);
    connection.destroy();
    for (const asking of [connectNbd, describeExport, listExports]) {
      const failure = await failureOf(asking({ ...options, tls: {} }));
      expect(failure).toMatchObject({ code: "TLS_NOT_OFFERED" });
    }
  });

  const misuses: readonly [what: string, code: string, tls: NbdTlsOptions][] = [
    ["a directory of certificates that is absent", "TLS_CREDENTIALS", { certificates: "/nonexistent" }],
    ["an authority that is no PEM", "TLS_CREDENTIALS", { ca: "hello", cert: "hello", key: "hello" }],
    ["a certificate without a key", "TLS_CREDENTIALS", { cert: "x" }],
    ["a key without a certificate", "TLS_CREDENTIALS", { key: "x" }],
    ["a file of keys that is absent", "TLS_CREDENTIALS", { pskFile: "/nonexistent", username: "a" }],
    ["an empty shared key", "TLS_CREDENTIALS", { psk: { identity: "a", key: Buffer.alloc(0) } }],
    ["a shared key without identity", "TLS_CREDENTIALS", { psk: { identity: "", key: Buffer.alloc(9) } }],
    ["a shared key and certificates", "INVALID_ARGUMENT", { pskFile: "/k", certificates: "/c" }],
    ["an empty hostname", "INVALID_ARGUMENT", { hostname: "" }],
  ];

  it.each(misuses)("refuses %s (%s)", async (_what, code, tls) => {
    const failure = await failureOf(connectNbd({ socketPath: "/nonexistent", exportName: "", tls }));
    expect(failure).toMatchObject({ code, scope: "usage" });
  });

  it("refuses a file of keys without the user, or with something else than a key", async () => {
    const pskFile = (await temporaryDirectory()).file("keys.psk");
    await writeFile(pskFile, "alice:00ff\nbob:no key\n");
    for (const username of ["carol", "bob", "ali"]) {
      const tls = { pskFile, username };
      const failure = await failureOf(connectNbd({ socketPath: "/nonexistent", exportName: "", tls }));
      expect(failure).toMatchObject({ code: "TLS_CREDENTIALS" });
    }
    const tls = { pskFile, username: "alice" };
    const failure = await failureOf(connectNbd({ socketPath: "/nonexistent", exportName: "", tls }));
    expect(failure).toMatchObject({ code: "CONNECT_FAILED" });
  });
});
