import { ReadAssembler } from "../../../../src/nbd-client-ts/src/read-assembler.js";
import { AckReceiver } from "../../../../src/nbd-client-ts/src/receiver.js";
import { Session } from "../../../../src/nbd-client-ts/src/session.js";
import { StatusCollector, type StatusWish } from "../../../../src/nbd-client-ts/src/status-collector.js";
import type { Transport, TransportListener } from "../../../../src/nbd-client-ts/src/transport.js";
import { cut, type Cuts } from "./run-parser.js";

export type Headers = "simple" | "structured" | "extended";

/** Takes what the session sends and brings what the test says, without a socket. */
class MemoryTransport implements Transport {
  declare listener: TransportListener;
  destroyed = false;

  write(): boolean {
    return true;
  }

  end(): void {
    // the test hangs up when its bytes are over
  }

  destroy(): void {
    this.destroyed = true;
  }
}

/** Reads of these ranges are the requests 1 to 3; 4 is a write, 5 a BLOCK_STATUS of 100 bytes at 0, 6 the same for one context. */
export const READS = [1000, 2000, 3000].map((offset, index) => ({ offset, length: 40 + index }));
export const CONTEXTS = new Map([
  [7, "base:allocation"],
  [9, "qemu:dirty-bitmap:b"],
]);

/** Asked of the server with extended headers, else kept from what it says of both. */
const BITMAP_WISH: Readonly<Record<Headers, StatusWish>> = {
  simple: { contexts: CONTEXTS, keep: new Set(["qemu:dirty-bitmap:b"]), reqOne: false },
  structured: { contexts: CONTEXTS, keep: new Set(["qemu:dirty-bitmap:b"]), reqOne: false },
  extended: { contexts: new Map([[9, "qemu:dirty-bitmap:b"]]), reqOne: false },
};

/** What becomes of six requests when a server sends exactly these bytes and hangs up. */
export async function replay(
  bytes: Buffer,
  headers: Headers,
  cuts: Cuts = [],
  canary = 0xee,
): Promise<unknown> {
  const transport = new MemoryTransport();
  const kinds = { structuredReplies: headers !== "simple", extendedHeaders: headers === "extended" };
  const session = new Session(transport, kinds, 60_000);
  const calls: Promise<unknown>[] = READS.map(async (range) => {
    const memory = Buffer.alloc(range.length, canary);
    const receiver = new ReadAssembler({ command: "READ", ...range }, memory);
    await session.submit({ request: { command: "READ", ...range, flags: 0 }, receiver });
    return memory.toString("hex");
  });
  const write = { command: "WRITE", offset: 0, length: 1 } as const;
  calls.push(session.submit({ request: { ...write, flags: 0 }, receiver: new AckReceiver(write) }));
  const status = { command: "BLOCK_STATUS", offset: 0, length: 100 } as const;
  for (const wish of [{ contexts: CONTEXTS, reqOne: false }, BITMAP_WISH[headers]]) {
    const collector = new StatusCollector(status, wish);
    calls.push(
      session
        .submit({ request: { ...status, flags: 0 }, receiver: collector })
        .then(() => [...collector.result].sort(([a], [b]) => a.localeCompare(b))),
    );
  }
  const settled = Promise.allSettled(calls);
  for (const chunk of cut(bytes, cuts)) transport.listener.received(chunk, chunk.length);
  transport.listener.ended(undefined);
  // No timer of the session may be what ends this: by now everything is settled, or never will be.
  const results = await Promise.race([settled, new Promise<"hang">((r) => setImmediate(r, "hang"))]);
  if (results === "hang") return "hang";
  const outcomes = results.map((each) =>
    each.status === "fulfilled" ? { value: each.value ?? "done" } : { code: codeOf(each.reason) },
  );
  return { outcomes, closed: codeOf(await session.closed), destroyed: transport.destroyed };
}

function codeOf(error: unknown): unknown {
  return error instanceof Error && "code" in error ? error.code : error;
}
