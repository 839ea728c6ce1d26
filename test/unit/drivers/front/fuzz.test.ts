import { once } from "node:events";
import { connect } from "node:net";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Inbox } from "../../../../src/drivers/front/inbox.js";
import { makeCertificates } from "../../../qemu/nbd-client-ts/support/certificates.js";
import { serverFiles } from "../../../support/front.js";
import { temporaryDirectory } from "../../../support/lifetime.js";
import { OPT, u16, u32 } from "../../nbd-client-ts/support/server-bytes.js";
import { contextData, goData, optionRequest, RawClient } from "./support/raw-client.js";
import { backend, echo, world } from "./support/world.js";

const name = fc.constantFrom(
  "open",
  "open",
  "secret",
  "private",
  "",
  "é",
  "x".repeat(4096),
  "x".repeat(4097),
);
const noise = fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes));
const data = fc.oneof(
  fc.constant(Buffer.alloc(0)),
  noise,
  name.map((text) => Buffer.from(text)),
  fc
    .tuple(name, fc.array(fc.nat(4), { maxLength: 3 }))
    .map(([text, kinds]) => goData(text, Buffer.concat([u16(kinds.length), ...kinds.map(u16)]))),
  fc
    .tuple(name, fc.array(fc.constantFrom("base:allocation", "base:", "qemu:", "?"), { maxLength: 3 }))
    .map(([text, queries]) => contextData(text, ...queries)),
  fc.tuple(name, noise).map(([text, rest]) => goData(text, rest)),
);
const number = fc.oneof(fc.constantFrom(...Object.values(OPT)), fc.nat(0xffffffff));
const option = fc.oneof(
  { weight: 12, arbitrary: fc.tuple(number, data).map(([kind, bytes]) => optionRequest(kind, bytes)) },
  {
    weight: 3,
    arbitrary: fc
      .tuple(fc.constantFrom(OPT.GO, OPT.INFO), fc.constantFrom("open", "secret"))
      .map(([kind, text]) => optionRequest(kind, goData(text))),
  },
  { weight: 1, arbitrary: noise },
  {
    weight: 1,
    arbitrary: fc
      .tuple(number, fc.nat(0xffffffff))
      .map(([kind, length]) => Buffer.concat([Buffer.from("IHAVEOPT"), u32(kind), u32(length)])),
  },
);
const flags = fc.oneof({ weight: 9, arbitrary: fc.constantFrom(1, 3) }, { weight: 1, arbitrary: fc.nat(8) });
const bytes = fc
  .tuple(flags, fc.array(option, { maxLength: 8 }))
  .map(([value, options]) => Buffer.concat([u32(value), ...options]));
const cuts = fc.array(fc.integer({ min: 1, max: 500 }), { maxLength: 30 });

/** Sends all of it in pieces, says goodbye, and resolves when the front has closed. */
async function attack(port: number, sent: Buffer, lengths: readonly number[]): Promise<void> {
  const socket = connect({ host: "127.0.0.1", port, noDelay: true });
  socket.on("error", () => undefined);
  socket.on("data", () => undefined);
  const closed = once(socket, "close");
  let at = 0;
  for (const length of lengths) {
    if (at >= sent.length) break;
    socket.write(sent.subarray(at, at + length));
    at += length;
    await new Promise((resolve) => setImmediate(resolve));
  }
  socket.write(sent.subarray(at));
  // Most of what can be answered has been by then; the others find out that the client has gone.
  await new Promise((resolve) => setTimeout(resolve, 5));
  socket.end();
  await closed;
}

describe("NbdFront with hostile bytes", () => {
  it.each(["plaintext", "TLS"])(
    "closes, lets nobody in, and serves the next client (%s)",
    async (mode) => {
      const tls =
        mode === "plaintext"
          ? "plaintext"
          : await serverFiles(await makeCertificates((await temporaryDirectory()).file("pki")));
      const { port, front, grant, log } = await world({ tls });
      let met = 0;
      const hidden = await backend(async (peer) => {
        met += 1;
        await echo()(peer);
      });
      const address = { socketPath: hidden.socketPath, exportName: "private" };
      grant({ exportName: "secret", clients: ["Somebody"], backend: address });
      await fc.assert(
        fc.asyncProperty(bytes, cuts, async (sent, lengths) => {
          await attack(port, sent, lengths);
          await expect.poll(() => front.stats().connections, { interval: 1 }).toBe(0);
        }),
        { numRuns: 300 },
      );
      expect(met).toBe(0);
      const [open, secret] = front.stats().grants;
      expect(secret?.connectionsTotal).toBe(0);
      // Or the bytes were too wild to reach anything; with TLS they must not.
      if (mode === "plaintext") expect(open?.connectionsTotal).toBeGreaterThan(10);
      else expect(open?.connectionsTotal).toBe(0);
      expect(log.reasons.length).toBeGreaterThan(10);
      const client = await RawClient.greeted(port);
      expect(await client.verdict(OPT.ABORT)).toBe(1);
    },
    120_000,
  );
});

describe("Inbox.take", () => {
  it("gives the same bytes however they were cut", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), cuts, cuts, async (content, pushes, takes) => {
        const inbox = new Inbox();
        let at = 0;
        for (const length of pushes) {
          inbox.push(Buffer.from(content.subarray(at, at + length)));
          at += length;
        }
        inbox.push(Buffer.from(content.subarray(at)));
        inbox.end(new Error("over"));
        const taken: Buffer[] = [];
        for (const length of takes) {
          if (length > inbox.length) break;
          taken.push(await inbox.take(length));
        }
        taken.push(inbox.takeAll());
        expect(Buffer.concat(taken).equals(Buffer.from(content))).toBe(true);
        await expect(inbox.take(1)).rejects.toThrow("over");
      }),
    );
  });
});
