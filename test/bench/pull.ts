import { argumentsOf } from "./support/address.js";
import { measureClient } from "./support/child.js";
import { describeRun } from "./support/figures.js";

/** `npm run bench:pull -- URI|SOCKET [REQUEST_BYTES [IN_FLIGHT]]` */
const args = argumentsOf("npm run bench:pull -- URI|SOCKET [REQUEST_BYTES [IN_FLIGHT]]", 1);
process.stdout.write(`${describeRun(await measureClient("pull.ts", ...args))}\n`);
