import { describe, expect, it } from "vitest";
import { metricsAddress, parseConfig } from "../../../src/model/config.js";
import { isLocal, parseMetricsAddress } from "../../../src/model/metrics-address.js";

describe("parseMetricsAddress", () => {
  it.each([
    ["unix:/run/fleece/metrics.sock", { path: "/run/fleece/metrics.sock" }, true],
    ["127.0.0.1:9108", { host: "127.0.0.1", port: 9108 }, true],
    ["[::1]:9108", { host: "::1", port: 9108 }, true],
    ["0.0.0.0:0", { host: "0.0.0.0", port: 0 }, false],
    ["[::]:9108", { host: "::", port: 9108 }, false],
  ])("reads %s", (text, address, local) => {
    expect(parseMetricsAddress(text)).toEqual(address);
    expect(isLocal(address)).toBe(local);
  });

  it.each([
    "",
    "9108",
    ":9108",
    "localhost:9108",
    "127.0.0.1",
    "127.1:80",
    "::1:9108",
    "1.2.3.4:65536",
    "unix:run",
  ])("refuses %j", (text) => {
    expect(parseMetricsAddress(text)).toBeUndefined();
  });
});

describe("metrics.address", () => {
  const LEAST =
    "stateDir: /s\nscratchDir: /s\ndomains: [{ name: a, qmp: /q }]\nrepositories: [{ name: d, path: /b }]\n";
  const read = (keys: string) => metricsAddress(parseConfig(`${LEAST}${keys}`, "/c.yaml"));

  it("is nowhere by default", () => {
    expect(read("")).toBeUndefined();
  });

  it("is of this host unless it is spelled out that others may read", () => {
    expect(read("metrics: { address: '127.0.0.1:9108' }")).toEqual({ host: "127.0.0.1", port: 9108 });
    expect(() => read("metrics: { address: '10.0.0.1:9108' }")).toThrow(
      /metrics\.address: Expected an address of this host .*allowRemote/,
    );
    expect(read("metrics: { address: '10.0.0.1:9108', allowRemote: true }")).toMatchObject({
      host: "10.0.0.1",
    });
  });
});
