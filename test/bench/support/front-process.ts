import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { NbdFront } from "../../../src/drivers/front/nbd-front.js";
import { systemClock } from "../../../src/drivers/system-clock.js";

/** A front in a process of its own: `SOCKET CERTIFICATES|plaintext`. Prints its port and runs until it is killed. */
const [socketPath = "", certificates = ""] = process.argv.slice(2);
const pem = (name: string) => readFile(join(certificates, name));
const silent = () => undefined;

const front = new NbdFront({
  tls:
    certificates === "plaintext"
      ? "plaintext"
      : {
          ca: await pem("ca-cert.pem"),
          cert: await pem("server-cert.pem"),
          key: await pem("server-key.pem"),
        },
  clock: systemClock,
  logger: { debug: silent, info: silent, warn: silent },
});
front.grant({
  exportName: "disk",
  backend: { socketPath, exportName: "disk" },
  clients: "any",
  idleMs: 60_000,
});
const address = await front.listen({ host: "127.0.0.1", port: 0 });
process.stdout.write(`${"port" in address ? address.port : 0}\n`);
