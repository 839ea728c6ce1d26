import { describe, expect, it } from "vitest";
import { CounterGuest } from "../guest/counter-guest.js";
import { createImage } from "../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../support/lifetime.js";

const mebibyte = 1 << 20;

describe("the counter guest", () => {
  it("counts in RAM and on all disks, and says so when a disk disagrees", async () => {
    const directory = await temporaryDirectory();
    const [first, second] = [directory.file("vda.qcow2"), directory.file("vdb.raw")];
    await createImage(first, 64 * mebibyte);
    await createImage(second, 64 * mebibyte, { format: "raw" });
    const guest = untilTestEnds(
      await CounterGuest.boot({
        directory: directory.path,
        disks: [
          { target: "vda", path: first, format: "qcow2" },
          { target: "vdb", path: second, format: "raw" },
        ],
      }),
    );
    const { counter } = guest;
    await counter.waitCount(counter.count() + 3);
    expect(await counter.check()).toMatch(/^ok [0-9a-f]{40}$/);
    expect(counter.mismatches()).toEqual([]);

    // By a command, which the guest obeys between two turns.
    await counter.console.command(
      "dd if=/dev/zero of=/dev/vdb bs=512 seek=2048 count=1 oflag=direct conv=fsync",
    );
    await counter.waitTurns(2);
    expect(counter.mismatches()).toEqual([expect.stringMatching(/^MISMATCH vdb ram=\d+ disk=$/)]);
    expect((await counter.console.command("dd if=/dev/zero of=/tmp/ballast bs=1M count=4")).exitStatus).toBe(
      0,
    );
    expect(await counter.check()).toMatch(/^BAD [0-9a-f]{40} expected [0-9a-f]{40}$/);
  });
});
