import type { Peer, ReceivedRequest } from "./scripted-server.js";
import { dataChunk, doneChunk, extended } from "./server-bytes.js";

export const CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

export type Answer = (request: ReceivedRequest) => readonly Buffer[] | undefined;

/** Answers with `answer` where it has one, reads with zeroes and acknowledges the rest; returns what was asked. */
export async function serveRequests(
  peer: Peer,
  seen: ReceivedRequest[],
  answer: Answer = () => undefined,
): Promise<void> {
  for (;;) {
    const request = await peer.receiveRequest();
    seen.push(request);
    if (request.command === CMD.DISC) break;
    const chunks = answer(request) ?? [
      request.command === CMD.READ
        ? dataChunk(request.cookie, request.offset, Buffer.alloc(request.length), true)
        : doneChunk(request.cookie),
    ];
    const isExtended = request.magic === 0x21e41c71;
    await peer.send(...chunks.map((chunk) => (isExtended ? extended(chunk, request.offset) : chunk)));
  }
  peer.hangUp();
}
