import { argumentsOf } from "./support/address.js";
import { measureClient } from "./support/child.js";
import { describeRun } from "./support/figures.js";

/** `npm run bench:copy -- SOURCE DESTINATION [BUFFER_BYTES [BUFFERS]]` */
const args = argumentsOf("npm run bench:copy -- SOURCE DESTINATION [BUFFER_BYTES [BUFFERS]]", 2);
process.stdout.write(`${describeRun(await measureClient("copy.ts", ...args))}\n`);
