import { ScriptedServer } from "../../unit/nbd-client-ts/support/scripted-server.js";
import { CMD } from "../../unit/nbd-client-ts/support/serve.js";
import { chunk, CHUNK, u32 } from "../../unit/nbd-client-ts/support/server-bytes.js";

export const EXTENT_BYTES = 64 * 1024;
const CONTEXT_ID = 1;
/** What is told at most in one reply, as by QEMU. */
const EXTENTS_PER_REPLY = 131_072;

/** A server of ours, in this process, whose map is data and holes of 64 KiB in turn. It has no data. */
export async function denseMap(extents: number): Promise<ScriptedServer> {
  const descriptors = Buffer.alloc(EXTENTS_PER_REPLY * 8);
  for (let index = 0; index < EXTENTS_PER_REPLY; index += 1) {
    descriptors.writeUInt32BE(EXTENT_BYTES, index * 8);
    descriptors.writeUInt32BE(index % 2 === 0 ? 0 : 3, index * 8 + 4);
  }
  return await ScriptedServer.start(async (peer) => {
    await peer.enter({ sizeBytes: extents * EXTENT_BYTES, contexts: { [CONTEXT_ID]: "base:allocation" } });
    for (;;) {
      const { command, cookie, offset, length } = await peer.receiveRequest();
      if (command === CMD.DISC) break;
      if (command !== CMD.BLOCK_STATUS || offset % (2 * EXTENT_BYTES) !== 0) {
        throw new Error(
          `Expected BLOCK_STATUS of whole pairs of extents, got command ${command} at ${offset}`,
        );
      }
      const told = descriptors.subarray(0, Math.min(length / EXTENT_BYTES, EXTENTS_PER_REPLY) * 8);
      await peer.send(chunk(cookie, CHUNK.STATUS, Buffer.concat([u32(CONTEXT_ID), told]), true));
    }
    peer.hangUp();
  });
}
