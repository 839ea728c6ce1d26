import { writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { describe, expect, it } from "vitest";
import { agentSocket } from "../../../src/agent.js";
import { claimAgentPlace } from "../../../src/drivers/agent-claim.js";
import { parseConfig } from "../../../src/model/config.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";

async function place() {
  const { path } = await temporaryDirectory();
  return { stateDir: `${path}/state`, runtimeRoot: `${path}/run`, socketPath: `${path}/run/agent.sock` };
}

describe("claimAgentPlace", () => {
  it("is refused to a second one until the first lets go", async () => {
    const wanted = await place();
    const first = await claimAgentPlace(wanted);
    await expect(claimAgentPlace(wanted)).rejects.toMatchObject({
      code: "AGENT_RUNNING",
      facts: { stateDir: wanted.stateDir, pid: process.pid },
    });
    await first[Symbol.asyncDispose]();
    untilTestEnds(await claimAgentPlace(wanted));
  });

  it("is refused where another program answers, and leaves that alone", async () => {
    const { stateDir, runtimeRoot } = await place();
    const socketPath = `${stateDir}.sock`;
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    untilTestEnds({
      [Symbol.asyncDispose]: () => new Promise<void>((resolve) => void server.close(() => resolve())),
    });
    const claim = claimAgentPlace({ stateDir, runtimeRoot, socketPath });
    await expect(claim).rejects.toMatchObject({ code: "AGENT_RUNNING", facts: { path: socketPath } });
    expect(server.listening).toBe(true);
    // The lock was let go.
    untilTestEnds(await claimAgentPlace({ stateDir, runtimeRoot, socketPath: `${stateDir}.other` }));
  });

  it("does not remove what is no socket, and does not make directories that it was not told to use", async () => {
    const { stateDir, runtimeRoot } = await place();
    const file = `${stateDir}.txt`;
    await writeFile(file, "");
    await expect(claimAgentPlace({ stateDir, runtimeRoot, socketPath: file })).rejects.toMatchObject({
      code: "ALREADY_EXISTS",
    });
    const elsewhere = `${stateDir}-missing/agent.sock`;
    await expect(claimAgentPlace({ stateDir, runtimeRoot, socketPath: elsewhere })).rejects.toMatchObject({
      code: "PATH_NOT_FOUND",
    });
  });
});

describe("agentSocket", () => {
  const config = (api: string) =>
    parseConfig(
      `stateDir: s\nscratchDir: c\nruntimeDir: r\n${api}domains: [{ name: vm, qmp: q }]\nrepositories: [{ name: d, path: b }]\n`,
      "/etc/fleece.yaml",
    );

  it("is in the runtime directory, unless configured", () => {
    expect(agentSocket(config(""))).toBe("/etc/r/agent.sock");
    expect(agentSocket(config("api: { socket: here.sock }\n"))).toBe("/etc/here.sock");
  });

  it("refuses a path that no socket can have, and says how long it may be", () => {
    const long = `/${"x".repeat(107)}`;
    expect(() => agentSocket(config(`api: { socket: ${long} }\n`))).toThrow(
      `Expected a socket path of at most 107 bytes, got 108: ${long}`,
    );
  });
});
