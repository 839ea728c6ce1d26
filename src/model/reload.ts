import type { Config } from "./config.js";

export interface ReloadedConfig {
  readonly config: Config;
  /** Keys that would have changed, and did not: an agent holds what they name as long as it runs. */
  readonly refused: readonly string[];
}

/** Of `api`, what may change at any time. */
const LIVE_API_KEYS = ["shutdownGrace"];

/** The new configuration, but with the old values of what only a restart can change. */
export function reloadedConfig(before: Config, after: Config): ReloadedConfig {
  const { runtimeDir: _runtimeDir, metrics: _metrics, nbd: _nbd, ...rest } = after;
  const { stateDir, runtimeDir, metrics, nbd, api } = before;
  return {
    config: {
      ...rest,
      stateDir,
      ...(runtimeDir === undefined ? {} : { runtimeDir }),
      ...(metrics === undefined ? {} : { metrics }),
      ...(nbd === undefined ? {} : { nbd }),
      api: { ...api, shutdownGrace: after.api.shutdownGrace },
    },
    refused: [
      ...changed(before, after, ["stateDir", "runtimeDir", "metrics", "nbd"]),
      ...changed(before.api, after.api, [...new Set([...Object.keys(api), ...Object.keys(after.api)])])
        .filter((key) => !LIVE_API_KEYS.includes(key))
        .map((key) => `api.${key}`),
    ],
  };
}

function changed(before: object, after: object, keys: readonly string[]): readonly string[] {
  const value = (of: object, key: string): unknown => new Map<string, unknown>(Object.entries(of)).get(key);
  return keys.filter((key) => JSON.stringify(value(before, key)) !== JSON.stringify(value(after, key)));
}
