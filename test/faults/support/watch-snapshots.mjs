/**
 * What the agent does again and again, once: looks at the open block snapshots of a domain, and ends the broken ones. Run as
 * `watch-snapshots.mjs --config PATH --embedded DOMAIN` on the built program.
 */
import { loadConfig, startAgent } from "../../../dist/agent.js";
import { watchSnapshots } from "../../../dist/services/snapshot-watch.js";

const [, configPath, , domain] = process.argv.slice(2);
const ignore = () => undefined;
const context = await startAgent(await loadConfig(configPath), { debug: ignore, info: ignore, warn: ignore });
await watchSnapshots(context, domain);
