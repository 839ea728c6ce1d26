import { connectNbd, copyExport } from "nbd-client-ts";
import { parseAddress } from "../support/address.js";
import { measureHere } from "../support/child.js";

/** Copies an export to another: `SOURCE DESTINATION [BUFFER_BYTES [BUFFERS]]`. Prints a run as JSON. */
const [from = "", to = "", bufferText = String(1 << 21), buffersText = "4"] = process.argv.slice(2);

const run = await measureHere(async () => {
  const metaContexts = ["base:allocation"];
  await using source = await connectNbd({ ...parseAddress(from), metaContexts, optionalContexts: true });
  await using destination = await connectNbd(parseAddress(to));
  // Without a flush, as nbdcopy and qemu-img to an NBD target do it.
  const settings = { bufferBytes: Number(bufferText), buffers: Number(buffersText), flush: false };
  await copyExport(source, destination, settings);
  return source.sizeBytes;
});
process.stdout.write(JSON.stringify(run));
