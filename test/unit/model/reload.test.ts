import { describe, expect, it } from "vitest";
import { parseConfig } from "../../../src/model/config.js";
import { reloadedConfig } from "../../../src/model/reload.js";

const config = (more = "", stateDir = "/state") =>
  parseConfig(
    `stateDir: ${stateDir}\nscratchDir: /scratch\ndomains: [{ name: web01, qmp: /run/web01.qmp }]\n` +
      `repositories: [{ name: default, path: /backup }]\n${more}`,
    "/c.yaml",
  );

describe("reloadedConfig", () => {
  it("takes over domains, limits, the log level and the grace period", () => {
    const after = config(
      "logLevel: debug\nparallelDisks: 9\nconcurrency: { domains: 9 }\njobs: [{ name: a, schedule: '@daily', domains: all }]\napi: { shutdownGrace: 5s }\nscratch: { limit: 1G }\n",
    );
    expect(reloadedConfig(config(), after)).toEqual({ config: after, refused: [] });
  });

  it("keeps what a running agent holds, and names it", () => {
    const before = config("api: { socket: /run/a.sock }\nmetrics: { address: 127.0.0.1:9108 }\n");
    const after = config("runtimeDir: /run/f\napi: { socket: /run/b.sock, shutdownGrace: 5s }\n", "/other");
    const { config: reloaded, refused } = reloadedConfig(before, after);
    expect(refused).toEqual(["stateDir", "runtimeDir", "metrics", "api.socket"]);
    expect(reloaded).toEqual({
      ...after,
      runtimeDir: undefined,
      stateDir: "/state",
      metrics: before.metrics,
      api: { ...before.api, shutdownGrace: 5000 },
    });
    expect(reloaded).not.toHaveProperty("runtimeDir");
  });
});
