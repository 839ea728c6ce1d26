import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { lookAtKernelLock, tryKernelLock } from "../../../src/drivers/kernel-lock.js";
import { temporaryDirectory } from "../../support/lifetime.js";

describe("tryKernelLock", () => {
  it("holds the lock until it is released, also while nobody refers to it", async () => {
    const path = (await temporaryDirectory()).file("lock");
    setFlagsFromString("--expose-gc");
    const collectGarbage = runInNewContext("gc") as () => void;
    expect(await tryKernelLock(path, "first").then(({ held }) => held)).toBe(true);
    for (let round = 0; round < 5; round += 1) {
      collectGarbage();
      await new Promise((resolve) => setImmediate(resolve));
      expect(await lookAtKernelLock(path)).toMatchObject({ held: true, holder: { purpose: "first" } });
    }
  });
});
