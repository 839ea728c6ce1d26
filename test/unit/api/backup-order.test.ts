import { describe, expect, it } from "vitest";
import { embeddedApi } from "../../../src/api/calls.js";
import { runBackup } from "../../../src/services/backup-run.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { ManualClock } from "../../support/manual-clock.js";

describe("Backups.List", () => {
  it("has backups of one second in the order of their moments, over pages", async () => {
    const { path } = await temporaryDirectory();
    const world = new FakeWorld(path, { disks: [{ target: "vda", sizeBytes: 65_536 }] });
    const clock = new ManualClock();
    const context = { ...world.process().context, clock };
    const taken: string[] = [];
    for (let index = 0; index < 8; index++) {
      taken.push((await runBackup(context, { domain: "vm" })).id);
      await clock.advance(10);
    }
    const seconds = new Set(taken.map((id) => id.slice(0, "20260101T000000Z".length)));
    expect(seconds.size).toBe(1);
    const api = embeddedApi(context);
    const listed: string[] = [];
    for (let pageToken: string | undefined = ""; pageToken !== undefined;) {
      const page: Awaited<ReturnType<typeof api.call<"Backups.List">>> = await api.call("Backups.List", {
        pageSize: 3,
        pageToken,
      });
      listed.push(...page.backups.map(({ id }) => id));
      pageToken = page.nextPageToken;
    }
    expect(listed).toEqual(taken);
  });
});
