import { readFile } from "node:fs/promises";
import { startAgent } from "../../../../src/agent.js";
import { parseConfig } from "../../../../src/model/config.js";
import { revertDomainSnapshot } from "../../../../src/services/domain-snapshots/revert.js";

/** Reverts a domain in a process of its own: for tests that kill it. */
const [configPath = "", domain = "", name = "", how = ""] = process.argv.slice(2);
const nothing = (): void => undefined;
const log = { debug: nothing, info: nothing, warn: nothing };
const context = await startAgent(parseConfig(await readFile(configPath, "utf8"), configPath), log);
await revertDomainSnapshot(context, { domain, name, quitFirst: how === "quit-first" });
process.exit(0);
