import { connectNbd, type MappedExtent } from "nbd-client-ts";
import { parseAddress } from "../support/address.js";
import { measureHere } from "../support/child.js";

/**
 * Walks the map of an export and reads its data, unless told not to: `URI|SOCKET [no-data]`. Prints a run as JSON; its
 * bytes are those of the data, or of the whole map without them.
 */
const [address = "", mode = ""] = process.argv.slice(2);
const REQUEST_BYTES = 2 << 20;
const IN_FLIGHT = 2;
const ZERO = 2;

const run = await measureHere(async () => {
  const metaContexts = ["base:allocation"];
  await using disk = await connectNbd({ ...parseAddress(address), metaContexts });
  let bytes = 0;
  if (mode === "no-data") {
    for await (const { length } of disk.extents()) bytes += length;
    return bytes;
  }
  const pieces = dataPieces(disk.extents());
  const lane = async (): Promise<void> => {
    const buffer = Buffer.allocUnsafeSlow(REQUEST_BYTES);
    for (let next = await pieces.next(); next.done !== true; next = await pieces.next()) {
      const { offset, length } = next.value;
      await disk.read(offset, length, { into: buffer.subarray(0, length) });
      bytes += length;
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
  return bytes;
});
process.stdout.write(JSON.stringify(run));

async function* dataPieces(extents: AsyncIterable<MappedExtent>) {
  for await (const { offset, length, flags } of extents) {
    if (((flags["base:allocation"] ?? 0) & ZERO) !== 0) continue;
    for (let at = 0; at < length; at += REQUEST_BYTES) {
      yield { offset: offset + at, length: Math.min(REQUEST_BYTES, length - at) };
    }
  }
}
