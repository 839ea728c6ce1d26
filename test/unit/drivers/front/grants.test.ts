import { describe, expect, it } from "vitest";
import { Grants } from "../../../../src/drivers/front/grants.js";
import type { ExportGrant } from "../../../../src/ports/export-front.js";
import { ManualClock } from "../../../support/manual-clock.js";

const FINGERPRINT = `sha256:${"ab".repeat(32)}`;
const alice = { name: "alice", fingerprint: FINGERPRINT };

function granted(changes: Partial<ExportGrant> = {}) {
  const clock = new ManualClock(0);
  const grants = new Grants(clock);
  const backend = { socketPath: "/s", exportName: "p" };
  grants.add({ exportName: "e", backend, clients: ["alice"], idleMs: 1000, ...changes });
  return { clock, grants };
}

describe("Grants.find", () => {
  it("knows clients by their name or their fingerprint, and nobody without a certificate", () => {
    const { grants } = granted();
    expect(grants.find("e", alice)).toBeDefined();
    expect(grants.find("e", { name: "bob", fingerprint: FINGERPRINT })).toBeUndefined();
    expect(grants.find("e", { name: undefined, fingerprint: FINGERPRINT })).toBeUndefined();
    expect(grants.find("e", undefined)).toBeUndefined();
    expect(grants.find("f", alice)).toBeUndefined();
    expect(granted({ clients: [FINGERPRINT] }).grants.find("e", alice)).toBeDefined();
    expect(granted({ clients: "any" }).grants.find("e", undefined)).toBeDefined();
    expect(granted({ clients: [] }).grants.find("e", alice)).toBeUndefined();
  });

  it("does not take a name that looks like a fingerprint for one", () => {
    const { grants } = granted({ clients: [FINGERPRINT] });
    expect(grants.find("e", { name: FINGERPRINT, fingerprint: "sha256:00" })).toBeUndefined();
  });
});

describe("A grant with an end", () => {
  it("ends by itself, at its time, also when that is months away", async () => {
    const untilMs = 100 * 86_400_000;
    const { clock, grants } = granted({ untilMs });
    const signal = grants.find("e", alice)?.ended.signal;
    await clock.advance(untilMs - 1);
    expect(signal?.aborted).toBe(false);
    await clock.advance(1);
    expect(signal?.aborted).toBe(true);
    expect(grants.all()).toEqual([]);
  });

  it("can be moved both ways", async () => {
    const { clock, grants } = granted({ untilMs: 1000 });
    const signal = grants.find("e", alice)?.ended.signal;
    grants.renew("e", 5000);
    await clock.advance(4999);
    expect(signal?.aborted).toBe(false);
    grants.renew("e", 1e9);
    grants.renew("e", 6000);
    await clock.advance(1001);
    expect(signal?.aborted).toBe(true);
    expect(() => grants.renew("e", 1e9)).toThrow("No export e is granted");
  });
});

describe("Grants.add", () => {
  it("refuses a name that is granted, and takes it again after its end", () => {
    const { grants, clock } = granted();
    const again = () =>
      grants.add({ exportName: "e", backend: { socketPath: "/", exportName: "" }, clients: [], idleMs: 1 });
    expect(again).toThrow(expect.objectContaining({ code: "ALREADY_EXISTS" }) as Error);
    grants.revoke("e");
    expect(again).not.toThrow();
    expect(clock.now()).toBe(0);
  });

  it.each([{ idleMs: 0 }, { idleMs: NaN }, { bytesPerSecond: 100 }, { bytesPerSecond: NaN }])(
    "refuses %o",
    (changes) => {
      expect(() => granted(changes)).toThrow(expect.objectContaining({ code: "INVALID_ARGUMENT" }) as Error);
    },
  );
});
