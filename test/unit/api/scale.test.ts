import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { connectApi } from "../../../src/api/client.js";
import { AgentMetrics } from "../../../src/api/metrics.js";
import { AuditFile } from "../../../src/drivers/audit-file.js";
import { openRequests } from "../../../src/api/repeatable.js";
import { ApiServer } from "../../../src/api/server.js";
import { bitmapName } from "../../../src/model/checkpoint.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { FakeDomain } from "../../support/fake-domain.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";

const DOMAINS = 110;
const CHECKPOINTS = 1000;

/** An agent of so many domains, each with two disks and so many checkpoints, `vm7` with a thousand, and a client of it. */
async function crowd(checkpoints = 1) {
  const { path } = await temporaryDirectory();
  const { context: one } = new FakeWorld(path, { disks: [] }).process();
  const names = Array.from({ length: DOMAINS }, (_, index) => `vm${String(index)}`);
  const domains = new Map<string, FakeDomain>();
  for (const name of names) domains.set(name, crowded(name, name === "vm7" ? CHECKPOINTS : checkpoints));
  const metrics = new AgentMetrics("1.2.3");
  const context: ServiceContext = {
    ...one,
    meter: metrics,
    domains: [...domains.keys()],
    drivers: {
      open: (name, signal) =>
        domains.get(name)?.open(name, signal) ?? Promise.reject(new Error(`There is no domain ${name}`)),
    },
  };
  metrics.use(context);
  const server = new ApiServer({
    context,
    requests: await openRequests(context),
    log: { ...context.log, child: () => context.log },
    audit: new AuditFile(join(path, "audit.log"), context.clock),
    calls: metrics,
  });
  const socket = join(path, "agent.sock");
  await server.listen(socket);
  untilTestEnds({ [Symbol.asyncDispose]: () => server.close(0) });
  const api = await connectApi(socket);
  untilTestEnds({
    [Symbol.asyncDispose]: () => {
      api[Symbol.dispose]();
      return Promise.resolve();
    },
  });
  return { api, domains, metrics };
}

function crowded(name: string, checkpoints: number): FakeDomain {
  const domain = new FakeDomain(
    [
      { target: "vda", sizeBytes: 65_536 },
      { target: "vdb", sizeBytes: 65_536 },
    ],
    { name },
  );
  for (const disk of domain.disks.values()) {
    for (let order = 1; order <= checkpoints; order++) {
      const bitmap = bitmapName({ name: checkpointName(order), order, timeMs: order * 1000 });
      disk.apply({ action: "add", bitmap, persistent: true, granularityBytes: 65_536 }, true);
      if (order < checkpoints) disk.apply({ action: "disable", bitmap }, true);
    }
  }
  return domain;
}

const checkpointName = (order: number): string => `20260101T000000Z-${String(order).padStart(6, "0")}`;

describe("an agent of a hundred and ten domains with a thousand checkpoints", () => {
  it("lists the domains in two pages, in their order, each with all its checkpoints", async () => {
    const { api, domains } = await crowd(CHECKPOINTS);
    const first = await api.call("Domains.List", { pageSize: 0, pageToken: "" });
    expect(first.domains).toHaveLength(100);
    const second = await api.call("Domains.List", { pageSize: 0, pageToken: first.nextPageToken ?? "" });
    expect(second.nextPageToken).toBeUndefined();
    const listed = [...first.domains, ...second.domains];
    expect(listed.map(({ name, state }) => `${name} ${state}`)).toEqual(
      [...domains.keys()].map((name) => `${name} RUNNING`),
    );
    for (const { disks } of listed) {
      expect(disks.map(({ checkpoints }) => checkpoints.length)).toEqual([CHECKPOINTS, CHECKPOINTS]);
    }
  });

  it.each([0, 1, 333, 1000, 5000])(
    "lists the checkpoints in pages of %i, each once, in their order",
    async (size) => {
      const { api } = await crowd();
      const found: string[] = [];
      const sizes: number[] = [];
      for (let pageToken: string | undefined = ""; pageToken !== undefined && sizes.length < 50;) {
        const page: { checkpoints: readonly { name: string }[]; nextPageToken?: string | undefined } =
          await api.call("Checkpoints.List", { domain: "vm7", pageSize: size, pageToken });
        found.push(...page.checkpoints.map(({ name }) => name));
        sizes.push(page.checkpoints.length);
        pageToken = page.nextPageToken;
      }
      const shown = size === 1 ? 50 : CHECKPOINTS;
      expect(found).toEqual(Array.from({ length: shown }, (_, index) => checkpointName(index + 1)));
      expect(Math.max(...sizes)).toBe(size === 0 ? 100 : Math.min(size, CHECKPOINTS));
    },
  );

  it("has metrics that grow with the domains, not with the calls", async () => {
    const { api, metrics } = await crowd();
    const lines = async (): Promise<number> =>
      (await metrics.text()).split("\n").filter((line) => line.startsWith("fleece_")).length;
    await api.call("Checkpoints.Get", { domain: "vm0", name: "none" }).catch(() => undefined);
    const before = await lines();
    for (let call = 0; call < 50; call++) {
      await api.call("Checkpoints.Get", { domain: "vm0", name: `none-${call}` }).catch(() => undefined);
      await api.call("Domains.Get", { domain: `none-${call}` }).catch(() => undefined);
    }
    expect(before).toBeGreaterThan(DOMAINS);
    // One more method, and one more code.
    expect((await lines()) - before).toBeLessThan(10);
  });
});
