import { connectNbd } from "nbd-client-ts";
import { parseAddress } from "../support/address.js";
import { measureHere } from "../support/child.js";

/** Small reads in random places: `URI|SOCKET COUNT [REQUEST_BYTES [IN_FLIGHT]]`. Prints a run as JSON. */
const [address = "", countText = "", requestText = "4096", inFlightText = "16"] = process.argv.slice(2);
const requestBytes = Number(requestText);

const run = await measureHere(async () => {
  await using connection = await connectNbd(parseAddress(address));
  const places = Math.floor(connection.sizeBytes / requestBytes);
  let left = Number(countText);
  const lane = async (): Promise<void> => {
    const into = Buffer.allocUnsafeSlow(requestBytes);
    while (left > 0) {
      left -= 1;
      await connection.read(Math.floor(Math.random() * places) * requestBytes, requestBytes, { into });
    }
  };
  await Promise.all(Array.from({ length: Number(inFlightText) }, lane));
  return Number(countText) * requestBytes;
});
process.stdout.write(JSON.stringify(run));
