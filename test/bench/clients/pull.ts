import { connectNbd } from "nbd-client-ts";
import { parseAddress } from "../support/address.js";
import { measureHere } from "../support/child.js";

/** Reads a whole export into a few buffers: `URI|SOCKET [REQUEST_BYTES [IN_FLIGHT]]`. Prints a run as JSON. */
const [address = "", requestText = String(1 << 21), inFlightText = "2"] = process.argv.slice(2);
const requestBytes = Number(requestText);

const run = await measureHere(async () => {
  await using connection = await connectNbd(parseAddress(address));
  if (!connection.structuredReplies) process.stderr.write("The server has no structured replies\n");
  await connection.warmUp();
  let next = 0;
  const lane = async (): Promise<void> => {
    const buffer = Buffer.allocUnsafeSlow(requestBytes);
    while (next < connection.sizeBytes) {
      const offset = next;
      const length = Math.min(requestBytes, connection.sizeBytes - offset);
      next += length;
      await connection.read(offset, length, { into: buffer.subarray(0, length) });
    }
  };
  await Promise.all(Array.from({ length: Number(inFlightText) }, lane));
  return connection.sizeBytes;
});
process.stdout.write(JSON.stringify(run));
