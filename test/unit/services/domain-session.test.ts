import { describe, expect, it } from "vitest";
import { DomainSession } from "../../../src/services/domain-session.js";
import { FakeDomain } from "../../support/fake-domain.js";
import type { FailAt } from "../../support/fake-faults.js";
import { failing } from "../../support/fake-faults.js";

/** A session whose first driver has a fault. */
function sessionWith(domain: FakeDomain, fault: FailAt): { session: DomainSession; opened: () => number } {
  let opened = 0;
  const factory = {
    open: async (name: string) => {
      const driver = await domain.open(name);
      return ++opened === 1 ? failing(driver, fault) : driver;
    },
  };
  return { session: new DomainSession(factory, "vm"), opened: () => opened };
}

describe("DomainSession.resilient", () => {
  it.each(["before", "after"] as const)(
    "goes by the way that works now when the domain becomes unreachable %s the call took effect",
    async (when) => {
      const domain = new FakeDomain([{ target: "vda", sizeBytes: 512 }]);
      const { session, opened } = sessionWith(domain, { call: 2, when, how: "unreachable" });
      await session.resilient((driver) => driver.inspect());
      const state = await session.resilient((driver) => driver.inspect());
      expect(state.mode).toBe("running");
      expect(opened()).toBe(2);
      domain.stop();
      expect((await session.resilient((driver) => driver.inspect())).mode).toBe("inactive");
      await session.close();
    },
  );

  it("does not repeat what failed for another reason", async () => {
    const domain = new FakeDomain([{ target: "vda", sizeBytes: 512 }]);
    const { session, opened } = sessionWith(domain, { call: 1, when: "before", how: "once" });
    await expect(session.resilient((driver) => driver.inspect())).rejects.toMatchObject({
      code: "QEMU_FAILED",
    });
    expect(opened()).toBe(1);
    await session.resilient((driver) => driver.inspect());
    await session.close();
    await domain.open("vm");
  });
});
