/**
 * Takes a domain snapshot. Run as `create-domain-snapshot.mjs --config PATH --embedded DOMAIN NAME` on the built program; with NAME
 * left out it only puts in order what another one has left.
 */
import { loadConfig, startAgent } from "../../../dist/agent.js";
import { createDomainSnapshot } from "../../../dist/services/domain-snapshots/create.js";

const [, configPath, , domain, name] = process.argv.slice(2);
const ignore = () => undefined;
const context = await startAgent(await loadConfig(configPath), { debug: ignore, info: ignore, warn: ignore });
if (name !== undefined) await createDomainSnapshot(context, { domain, name });
