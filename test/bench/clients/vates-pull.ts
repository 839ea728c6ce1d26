import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { measureHere } from "../support/child.js";

/** The part of `@vates/nbd-client` that is used here. */
interface VatesClient {
  readonly exportSize: bigint;
  connect(): Promise<void>;
  readBlock(index: number, size: number): Promise<Buffer>;
  disconnect(): Promise<void>;
}
type VatesModule = { default: new (settings: object, options: object) => VatesClient };

/** Reads a whole export: `PACKAGE_DIRECTORY SOCKET NAME [REQUEST_BYTES [IN_FLIGHT]]`. Prints a run as JSON. */
const [directory = "", socketPath = "", exportname = "", requestText, inFlightText = "16"] =
  process.argv.slice(2);
const requestBytes = Number(requestText ?? 1 << 20);
const module = (await import(pathToFileURL(join(directory, "index.mjs")).href)) as VatesModule;

const run = await measureHere(async () => {
  // It hands `port` to net.connect, which takes a path as well.
  const client = new module.default({ port: socketPath, exportname }, {});
  await client.connect();
  const sizeBytes = Number(client.exportSize);
  let next = 0;
  const lane = async (): Promise<void> => {
    for (let index = next++; index * requestBytes < sizeBytes; index = next++) {
      await client.readBlock(index, requestBytes);
    }
  };
  await Promise.all(Array.from({ length: Number(inFlightText) }, lane));
  await client.disconnect();
  return sizeBytes;
});
process.stdout.write(JSON.stringify(run));
process.exit(0);
