import { describe, expect, it, vi } from "vitest";
import { type Client, LOCAL_CLIENT } from "../../../src/model/access.js";
import type { SnapshotJournal } from "../../../src/model/operation.js";
import type { ExportFront, ExportGrant, FrontAddress, FrontOpener } from "../../../src/ports/export-front.js";
import { startExports, stopExports } from "../../../src/services/block-exports.js";
import {
  createBlockSnapshot,
  deleteBlockSnapshot,
  renewBlockSnapshot,
} from "../../../src/services/block-snapshots.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { ExportFronts } from "../../../src/services/export-fronts.js";
import { endBroken } from "../../../src/services/snapshot-watch.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { LogLines } from "../../support/front.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { ManualClock } from "../../support/manual-clock.js";

const ADDRESS = { host: "10.0.0.1", port: 10809 };
const CLIENTS = ["Vendor", `sha256:${"0a".repeat(32)}`];
const LEASE_MS = 60_000;

/** Grants as the front keeps them: one whose end has come is not there any more. */
class FakeOpener implements FrontOpener {
  tcp: FrontOpener["tcp"] = { address: ADDRESS, plaintext: false };
  /** By export, of all fronts that listen. */
  readonly granted = new Map<string, ExportGrant>();
  listening = 0;
  opened = 0;
  attempts = 0;
  failure: Error | undefined;
  readonly #clock: ManualClock;

  constructor(clock: ManualClock) {
    this.#clock = clock;
  }

  open(address: FrontAddress): Promise<ExportFront> {
    this.attempts += 1;
    if (this.failure !== undefined) return Promise.reject(this.failure);
    this.listening += 1;
    this.opened += 1;
    const own = new Set<string>();
    const close = (): Promise<void> => {
      this.listening -= 1;
      for (const name of own) this.granted.delete(name);
      return Promise.resolve();
    };
    return Promise.resolve({
      listen: () => Promise.resolve(address),
      grant: (grant) => {
        own.add(grant.exportName);
        this.granted.set(grant.exportName, grant);
      },
      renew: (exportName, untilMs) => {
        const grant = this.granted.get(exportName);
        if (grant === undefined || (grant.untilMs ?? 0) <= this.#clock.now()) {
          throw new FleeceError("EXPORT_NOT_FOUND", "It is not granted");
        }
        this.granted.set(exportName, { ...grant, untilMs });
      },
      revoke: (exportName) => void this.granted.delete(exportName),
      stats: () => ({ connections: 0, refusals: 0, grants: [] }),
      close,
      [Symbol.asyncDispose]: close,
    });
  }
}

/** An agent with fronts, and an embedded command, of one fake domain with a snapshot of two disks. */
async function startAgent() {
  const { path } = await temporaryDirectory();
  const disks = ["vda", "vdb"].map((target) => ({ target, sizeBytes: 1024 * 1024 }));
  const embedded: ServiceContext = { ...new FakeWorld(path, { disks }).process().context };
  const clock = new ManualClock();
  const log = new LogLines();
  const opener = new FakeOpener(clock);
  const parts = { store: embedded.store, clock, log, opener };
  const restarted = async (): Promise<ExportFronts> => {
    const fronts = untilTestEnds(new ExportFronts({ ...parts, idleMs: 1000, bytesPerSecond: undefined }));
    await fronts.use({ domains: ["vm"] });
    return fronts;
  };
  const fronts = await restarted();
  const context: ServiceContext = { ...embedded, clock, log, fronts };
  await createBlockSnapshot(context, { domain: "vm", name: "night", leaseMs: LEASE_MS });
  const offer = (more: Partial<Parameters<typeof startExports>[1]> = {}) =>
    startExports(context, {
      ...{ domain: "vm", snapshot: "night", front: { address: ADDRESS, clients: CLIENTS } },
      ...more,
    });
  const change = async (changes: Partial<SnapshotJournal>): Promise<void> => {
    const [record] = await context.store.operations("vm");
    if (record?.subject.kind !== "block-snapshot") throw new Error("Expected a snapshot");
    await context.store.save({ ...record, subject: { ...record.subject, ...changes } });
  };
  return { context, embedded: { ...embedded, clock }, clock, log, opener, fronts, offer, change, restarted };
}

describe("ExportFronts", () => {
  it("grants what is started, under names with the domain, until the lease ends", async () => {
    const { opener, offer, clock } = await startAgent();
    const [vda] = await offer();
    expect([...opener.granted.keys()]).toEqual(["vm/vda-night", "vm/vdb-night"]);
    expect(opener.granted.get("vm/vda-night")).toEqual({
      exportName: "vm/vda-night",
      backend: { socketPath: vda?.socketPath, exportName: "vda-night" },
      clients: CLIENTS,
      idleMs: 1000,
      untilMs: clock.now() + LEASE_MS,
    });
    expect(opener).toMatchObject({ listening: 1, opened: 1 });
  });

  it("listens from the first export to the last", async () => {
    const { context, opener, offer } = await startAgent();
    expect(opener.listening).toBe(0);
    await offer({ disks: ["vda"] });
    await offer({ disks: ["vdb"] });
    expect(opener).toMatchObject({ listening: 1, opened: 1 });
    await stopExports(context, "vm", "night");
    expect(opener).toMatchObject({ listening: 0, opened: 1 });
  });

  it("moves the end with the lease, also by a command without the agent", async () => {
    const { context, embedded, opener, offer, clock } = await startAgent();
    await offer();
    const untilMs = () => opener.granted.get("vm/vda-night")?.untilMs;
    await renewBlockSnapshot(context, "vm", "night", 2 * LEASE_MS);
    expect(untilMs()).toBe(clock.now() + 2 * LEASE_MS);
    await renewBlockSnapshot(embedded, "vm", "night", 5 * LEASE_MS);
    const endMs = clock.now() + 5 * LEASE_MS;
    await clock.advance(1000);
    await vi.waitFor(() => expect(untilMs()).toBe(endMs));
  });

  it("revokes what a command without the agent has stopped, at its next look", async () => {
    const { embedded, opener, offer, clock } = await startAgent();
    await offer();
    await stopExports(embedded, "vm", "night");
    expect(opener.granted.size).toBe(2);
    await clock.advance(1000);
    await vi.waitFor(() => expect(opener).toMatchObject({ granted: new Map(), listening: 0 }));
  });

  it("revokes the exports of a snapshot that is deleted, over, or broken", async () => {
    for (const end of ["deleted", "over", "known to be broken", "ended as broken"]) {
      const { context, opener, offer, change, clock, fronts } = await startAgent();
      await offer();
      if (end === "deleted") await deleteBlockSnapshot(context, "vm", "night", "failure");
      if (end === "over") {
        await clock.advance(LEASE_MS);
        await fronts.follow("vm");
      }
      if (end === "known to be broken" || end === "ended as broken") await change({ lost: "It was lost" });
      if (end === "known to be broken") await fronts.follow("vm");
      if (end === "ended as broken") await endBroken(context, "vm", "night");
      expect(opener, end).toMatchObject({ granted: new Map(), listening: 0 });
    }
  });

  it("grants again after a restart of the agent, and ends nothing when it closes", async () => {
    const { fronts, opener, offer, restarted } = await startAgent();
    await offer();
    const before = new Map(opener.granted);
    await fronts.close();
    expect(opener).toMatchObject({ granted: new Map(), listening: 0 });
    await restarted();
    expect(opener).toMatchObject({ granted: before, listening: 1 });
  });

  it("fails the start when it cannot listen, and leaves nothing", async () => {
    const { context, opener, offer } = await startAgent();
    opener.failure = new FleeceError("ALREADY_EXISTS", "The address is in use");
    await expect(offer()).rejects.toMatchObject({ code: "ALREADY_EXISTS" });
    const [record] = await context.store.operations("vm");
    expect(record?.subject).toMatchObject({ exports: [] });
    expect(opener).toMatchObject({ granted: new Map(), listening: 0 });
  });

  it("tries again to listen after a restart, and says so once", async () => {
    const { fronts, opener, offer, restarted, clock, log } = await startAgent();
    await offer();
    await fronts.close();
    opener.failure = new FleeceError("ALREADY_EXISTS", "The address is in use");
    await restarted();
    // The clock stands still for whatever is read from the disk.
    await vi.waitFor(async () => {
      await clock.advance(1000);
      expect(opener.attempts).toBeGreaterThan(4);
    });
    opener.failure = undefined;
    await vi.waitFor(async () => {
      await clock.advance(1000);
      expect(opener.granted.size).toBe(2);
    });
    expect(log.lines.filter(({ message }) => message === "The address is in use")).toHaveLength(1);
  });

  it("grants nothing at an address, or without TLS, that the configuration does not have any more", async () => {
    for (const tcp of [
      undefined,
      { address: ADDRESS, plaintext: true },
      { address: { ...ADDRESS, port: 1 }, plaintext: false },
    ]) {
      const { fronts, opener, offer, restarted, log } = await startAgent();
      await offer();
      await fronts.close();
      opener.tcp = tcp;
      await restarted();
      expect(opener).toMatchObject({ granted: new Map(), listening: 0 });
      expect(log.lines.at(-1)?.message).toMatch(/nbd in the configuration was changed/);
    }
  });

  it("refuses to offer one disk in two ways", async () => {
    const { offer, embedded } = await startAgent();
    await offer();
    expect(await offer()).toHaveLength(2);
    const once = {
      code: "ALREADY_EXISTS",
      message: expect.stringContaining("at tcp:10.0.0.1:10809 for Vendor") as string,
    };
    await expect(offer({ front: { address: ADDRESS, clients: ["Other"] } })).rejects.toMatchObject(once);
    await expect(startExports(embedded, { domain: "vm", snapshot: "night" })).rejects.toMatchObject(once);
  });
});

const CALLER: Client = { name: "vendor", role: "operator", fingerprint: `sha256:${"1b".repeat(32)}` };

describe("ExportFronts.offer", () => {
  it("knows clients by name or fingerprint, in any spelling and order", async () => {
    const { fronts } = await startAgent();
    const colons = "0A:".repeat(32).slice(0, -1);
    const clients = [`SHA256:${colons}`, "Vendor", "Vendor"];
    const offered = fronts.offer({ host: "10.0.0.1", port: 10809 }, clients, CALLER);
    expect(offered).toEqual({ address: ADDRESS, clients: CLIENTS });
    const onSocket = fronts.offer({ socketPath: "/s" }, [], CALLER);
    expect(onSocket).toEqual({ address: { socketPath: "/s" }, clients: "any" });
  });

  it("takes the caller's own certificate where no client is named, and clients show certificates", async () => {
    const { fronts, opener } = await startAgent();
    expect(fronts.offer(ADDRESS, [], CALLER).clients).toEqual([CALLER.fingerprint]);
    opener.tcp = { address: ADDRESS, plaintext: true };
    expect(fronts.offer(ADDRESS, [], CALLER).clients).toBe("any");
  });

  it.each<[string, FrontOpener["tcp"], FrontAddress, readonly string[]]>([
    ["UNSUPPORTED", undefined, ADDRESS, ["c"]],
    ["INVALID_ARGUMENT", { address: ADDRESS, plaintext: false }, { ...ADDRESS, port: 1 }, ["c"]],
    ["INVALID_ARGUMENT", { address: ADDRESS, plaintext: false }, { ...ADDRESS, host: "0.0.0.0" }, ["c"]],
    ["INVALID_ARGUMENT", { address: ADDRESS, plaintext: false }, ADDRESS, []],
    ["INVALID_ARGUMENT", { address: ADDRESS, plaintext: false }, ADDRESS, [""]],
    ["INVALID_ARGUMENT", { address: ADDRESS, plaintext: false }, ADDRESS, ["sha256:0a"]],
    ["INVALID_ARGUMENT", { address: ADDRESS, plaintext: true }, ADDRESS, ["c"]],
    ["INVALID_ARGUMENT", undefined, { socketPath: "/s" }, ["c"]],
  ])("fails with %s where %j is configured, for %j and %j", async (code, tcp, address, clients) => {
    const { fronts, opener } = await startAgent();
    opener.tcp = tcp;
    expect(() => fronts.offer(address, clients, LOCAL_CLIENT)).toThrow(
      expect.objectContaining({ code }) as Error,
    );
  });
});
