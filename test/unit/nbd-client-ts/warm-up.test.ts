import { describe, expect, it } from "vitest";
import { connected, failureOf } from "./support/connected.js";
import type { ReceivedRequest, ScriptedExport } from "./support/scripted-server.js";
import { CMD, serveRequests, type Answer } from "./support/serve.js";
import { errorChunk } from "./support/server-bytes.js";

const MIB = 1 << 20;

async function against(offered: ScriptedExport, answer: Answer = () => undefined) {
  const seen: ReceivedRequest[] = [];
  const connection = await connected((peer) => serveRequests(peer, seen, answer), { offered });
  const asked = () => seen.map(({ command, offset, length }) => [command, offset, length]);
  return { connection, asked };
}

describe("NbdExport.warmUp", () => {
  it("is one READ of 16 MiB, or of what the server allows", async () => {
    for (const [maximumMib, readMib] of [
      [32, 16],
      [4, 4],
    ] as const) {
      const blockSize = [512, 4096, maximumMib * MIB] as const;
      const { connection, asked } = await against({ sizeBytes: 1024 * MIB, blockSize });
      await connection.warmUp();
      expect(asked()).toEqual([[CMD.READ, 0, readMib * MIB]]);
    }
  });

  it.each([
    ["export", { sizeBytes: 16 * MIB - 1 }],
    ["maximum block size", { sizeBytes: 1024 * MIB, blockSize: [1, 4096, 2 * MIB] as const }],
  ])("asks for nothing where the server has a small %s", async (_, offered) => {
    const { connection, asked } = await against(offered);
    await connection.warmUp();
    await connection.close();
    expect(asked()).toEqual([[CMD.DISC, 0, 0]]);
  });

  it("does not mind a server that cannot read there", async () => {
    const fault: Answer = ({ cookie, length }) =>
      length === 16 * MIB ? [errorChunk(cookie, 5, "")] : undefined;
    const { connection } = await against({ sizeBytes: 1024 * MIB }, fault);
    await connection.warmUp();
    expect(await connection.read(0, 512)).toHaveLength(512);
  });

  it("rejects when the connection dies of it", async () => {
    const connection = await connected(
      async (peer) => {
        await peer.receiveRequest();
        peer.hangUp();
      },
      { offered: { sizeBytes: 1024 * MIB } },
    );
    expect(await failureOf(connection.warmUp())).toMatchObject({ code: "CONNECTION_LOST" });
  });

  it("rejects when it is aborted", async () => {
    const { connection } = await against({ sizeBytes: 1024 * MIB });
    const aborted = connection.warmUp({ signal: AbortSignal.abort() });
    expect(await failureOf(aborted)).toMatchObject({ code: "ABORTED" });
  });
});
