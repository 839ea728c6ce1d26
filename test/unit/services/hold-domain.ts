import { StateDirectory } from "../../../src/drivers/state-directory.js";

/** Locks a domain, reports and waits: for tests that want another process to hold it, or to kill that process. */
const [stateDir = "", domain = ""] = process.argv.slice(2);
await new StateDirectory(stateDir).lockDomain(domain, "backup run by somebody else");
process.send?.("ready");
process.once("disconnect", () => process.exit(1));
