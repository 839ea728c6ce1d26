import { describe, expect, it } from "vitest";
import { connectNbdPool, type NbdPool, type NbdPoolOptions } from "nbd-client-ts";
import { untilTestEnds } from "../../support/lifetime.js";
import { failureOf, serving } from "./support/connected.js";
import type { ReceivedRequest, ScriptedExport } from "./support/scripted-server.js";
import { CMD, serveRequests, type Answer } from "./support/serve.js";
import { ALL_FLAGS, dataChunk, statusChunk } from "./support/server-bytes.js";

const MULTI = ALL_FLAGS; // has CAN_MULTI_CONN, 256
const MIB = 1 << 20;

interface Scripted {
  readonly pool: NbdPool;
  /** Requests by connection, in the order of connecting. */
  readonly seen: readonly ReceivedRequest[][];
}

async function pooled(
  offered: (connection: number) => ScriptedExport,
  options: Partial<NbdPoolOptions> = {},
  answer: Answer = () => undefined,
): Promise<Scripted> {
  const seen: ReceivedRequest[][] = [];
  const server = await serving(async (peer) => {
    const requests: ReceivedRequest[] = [];
    seen.push(requests);
    await peer.enter(offered(seen.length));
    await serveRequests(peer, requests, answer);
  });
  const pool = await connectNbdPool({ socketPath: server.socketPath, exportName: "disk", ...options });
  return { pool: untilTestEnds(pool), seen };
}

const commands = (seen: readonly ReceivedRequest[][]) =>
  seen.map((each) => each.map(({ command }) => command));

describe("connectNbdPool", () => {
  it("connects as often as asked where the server says that it is safe", async () => {
    const { pool, seen } = await pooled(() => ({ transmissionFlags: MULTI }), { connections: 3 });
    expect(pool).toMatchObject({ connections: 3, shortfall: undefined, canMultiConn: true, sizeBytes: MIB });
    await pool.close();
    expect(commands(seen)).toEqual([[CMD.DISC], [CMD.DISC], [CMD.DISC]]);
  });

  it("keeps to one connection, and says why, where the server does not", async () => {
    const { pool, seen } = await pooled(() => ({ transmissionFlags: ALL_FLAGS & ~256 }), {
      connections: 3,
    });
    expect(pool).toMatchObject({ connections: 1, shortfall: { code: "NOT_SUPPORTED" } });
    expect(await pool.read(0, 10)).toHaveLength(10);
    expect(seen).toHaveLength(1);
  });

  it("goes on with fewer, and says why, when the server hangs up on further ones", async () => {
    let count = 0;
    const server = await serving(async (peer) => {
      count += 1;
      if (count > 2) {
        peer.hangUp();
        return;
      }
      await peer.enter({ transmissionFlags: MULTI });
      await serveRequests(peer, []);
    });
    const pool = untilTestEnds(await connectNbdPool({ socketPath: server.socketPath, exportName: "disk" }));
    expect(pool).toMatchObject({ connections: 2, shortfall: { code: "CONNECTION_LOST" } });
  });

  const differences: Readonly<Record<string, ScriptedExport>> = {
    size: { transmissionFlags: MULTI, sizeBytes: 2 * MIB },
    flags: { transmissionFlags: MULTI | 2 },
    "block size": { transmissionFlags: MULTI, blockSize: [512, 4096, MIB] },
    contexts: { transmissionFlags: MULTI, contexts: { 1: "a:a" } },
  };
  it.each(Object.entries(differences))("refuses a server that changes the %s", async (_name, other) => {
    const first = { transmissionFlags: MULTI, contexts: { 1: "a:a", 2: "b:b" } };
    const pool = pooled((connection) => (connection === 1 ? first : { contexts: first.contexts, ...other }), {
      connections: 2,
      metaContexts: ["a:a", "b:b"],
      optionalContexts: true,
    });
    expect(await failureOf(pool)).toMatchObject({ code: "CONNECTIONS_DIFFER", scope: "connection" });
  });

  it.each([0, 17, 1.5])("refuses %d connections", async (connections) => {
    const pool = connectNbdPool({ socketPath: "/nowhere", exportName: "", connections });
    expect(await failureOf(pool)).toMatchObject({ code: "INVALID_ARGUMENT" });
  });
});

describe("NbdPool", () => {
  it("spreads one large read over its connections and puts it together", async () => {
    const content = Buffer.from(Array.from({ length: 100_000 }, (_, index) => (index * 31) % 253));
    const { pool, seen } = await pooled(
      () => ({ transmissionFlags: MULTI, sizeBytes: content.length, blockSize: [1, 512, 4096] }),
      { connections: 2 },
      ({ cookie, offset, length }) => [
        dataChunk(cookie, offset, content.subarray(offset, offset + length), true),
      ],
    );
    expect(content.equals(await pool.read(0, content.length))).toBe(true);
    for (const requests of seen) expect(requests.length).toBeGreaterThan(5);
  });

  it("flushes on one connection, once the writes on all were acknowledged", async () => {
    const { pool, seen } = await pooled(
      () => ({ transmissionFlags: MULTI & ~8, blockSize: [1, 512, 4096] }),
      { connections: 2 },
    );
    await pool.write(0, Buffer.alloc(8 * 4096), { fua: true }); // no FUA there: a flush in its place
    const writes = seen.flat().filter(({ command }) => command === CMD.WRITE);
    expect(writes).toHaveLength(8);
    expect(commands(seen).map((each) => each.includes(CMD.WRITE))).toEqual([true, true]);
    expect(seen.flat().filter(({ command }) => command === CMD.FLUSH)).toHaveLength(1);
    expect(commands(seen).filter((each) => each.at(-1) === CMD.FLUSH)).toHaveLength(1);
  });

  it.each([false, true])("knows each connection's own ids of contexts, filtered: %s", async (filtered) => {
    const seen: number[] = [];
    let count = 0;
    const server = await serving(async (peer) => {
      count += 1;
      const id = count * 10;
      const contexts = { [id]: "base:allocation", ...(filtered ? { [id + 1]: "qemu:dirty-bitmap:b" } : {}) };
      await peer.enter({ extended: filtered, transmissionFlags: MULTI | (1 << 12), contexts });
      await serveRequests(peer, [], ({ cookie, length, payload }) => {
        seen.push(filtered ? payload.readUInt32BE(8) : id);
        return [statusChunk(cookie, id, [[length, 0]], true)];
      });
    });
    const metaContexts = ["base:allocation", ...(filtered ? ["qemu:dirty-bitmap:b"] : [])];
    const options = { connections: 2, metaContexts };
    const pool = untilTestEnds(
      await connectNbdPool({ socketPath: server.socketPath, exportName: "disk", ...options }),
    );
    const contexts = ["base:allocation"];
    await Promise.all([0, 1, 2, 3].map((at) => pool.blockStatus(at, 1, { contexts })));
    expect([...new Set(seen)].sort()).toEqual([10, 20]);
  });

  it("ends as a whole with the first error of one connection", async () => {
    const { pool } = await pooled(
      () => ({ transmissionFlags: MULTI }),
      { connections: 3 },
      ({ offset }) => (offset === 512 ? [Buffer.alloc(64)] : []),
    );
    const reads = [0, 512, 1024].map((offset) => failureOf(pool.read(offset, 512)));
    for (const failure of await Promise.all(reads)) expect(failure.code).toBe("BAD_MAGIC");
    expect(await pool.closed).toMatchObject({ code: "BAD_MAGIC" });
    expect(await failureOf(pool.read(0, 1))).toMatchObject({ code: "BAD_MAGIC" });
  });
});
