import { StorageDaemon } from "../../../src/drivers/storage-daemon.js";

/** Starts a daemon in the given directory, reports its pid and waits: for a test that kills this process. */
const [directory = ""] = process.argv.slice(2);
const daemon = await StorageDaemon.start({ directory, lifetime: "process" });
process.send?.({ pid: daemon.pid });
process.once("disconnect", () => process.exit(1));
await daemon.ended;
