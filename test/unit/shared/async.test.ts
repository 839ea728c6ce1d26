import { setImmediate as turn } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { forEachLimited, OneByOne } from "../../../src/shared/async.js";

/** Counts up, and says whether it was closed before its end. */
function counter(): { items: AsyncGenerator<number>; given: () => number; closed: () => boolean } {
  let given = 0;
  let closed = false;
  async function* count(): AsyncGenerator<number> {
    try {
      for (;;) {
        await turn();
        yield given++;
      }
    } finally {
      closed = true;
    }
  }
  return { items: count(), given: () => given, closed: () => closed };
}

describe("forEachLimited", () => {
  it("runs every item once, never more than the limit at a time, and as many as that", async () => {
    const seen: number[] = [];
    let running = 0;
    let most = 0;
    await forEachLimited(Array.from({ length: 20 }).keys(), 3, async (item) => {
      most = Math.max(most, ++running);
      await turn();
      seen.push(item);
      running--;
    });
    expect(seen.toSorted((a, b) => a - b)).toEqual([...Array(20).keys()]);
    expect(most).toBe(3);
  });

  it("runs one at a time where the limit is less than one", async () => {
    const seen: string[] = [];
    await forEachLimited(["a", "b"], 0, (item) => Promise.resolve(void seen.push(item)));
    expect(seen).toEqual(["a", "b"]);
  });

  it("aborts the others on the first failure, waits for them and rethrows that failure", async () => {
    const first = new Error("first");
    const events: string[] = [];
    const run = forEachLimited(["fails", "waits", "never"], 2, async (item, signal) => {
      events.push(`${item} begins`);
      if (item === "fails") throw first;
      await new Promise((resolve) => {
        signal.addEventListener("abort", resolve);
      });
      await turn();
      events.push(`${item} ends`);
      throw new Error("second");
    });
    await expect(run).rejects.toBe(first);
    expect(events).toEqual(["fails begins", "waits begins", "waits ends"]);
  });

  it("rethrows a failure that is undefined", async () => {
    const thrown = await forEachLimited([1], 1, () => Promise.reject(undefined as unknown as Error)).then(
      () => "nothing",
      (error: unknown) => error,
    );
    expect(thrown).toBeUndefined();
  });

  it("takes no further item after a failure and closes the generator", async () => {
    const { items, given, closed } = counter();
    const run = forEachLimited(items, 2, (item) =>
      item === 5 ? Promise.reject(new Error("five")) : Promise.resolve(),
    );
    await expect(run).rejects.toThrow("five");
    expect(given()).toBeLessThanOrEqual(8);
    expect(closed()).toBe(true);
  });

  it("rethrows a failure of the generator itself", async () => {
    async function* broken(): AsyncGenerator<number> {
      yield await Promise.resolve(1);
      throw new Error("broken source");
    }
    await expect(forEachLimited(broken(), 4, () => Promise.resolve())).rejects.toThrow("broken source");
  });

  it("stops with the caller's reason when it is cancelled, and closes the generator", async () => {
    const { items, closed } = counter();
    const stop = new AbortController();
    const reason = new Error("cancelled");
    const run = forEachLimited(
      items,
      2,
      async (item, signal) => {
        await turn();
        if (item === 3) stop.abort(reason);
        expect(signal.aborted).toBe(stop.signal.aborted);
      },
      stop.signal,
    );
    await expect(run).rejects.toBe(reason);
    expect(closed()).toBe(true);
  });

  it("starts nothing when it was cancelled beforehand", async () => {
    let started = 0;
    const run = forEachLimited(
      [1, 2],
      2,
      () => {
        started++;
        return Promise.resolve();
      },
      AbortSignal.abort(),
    );
    await expect(run).rejects.toThrow();
    expect(started).toBe(0);
  });
});

describe("OneByOne.run", () => {
  it("begins an action when those before have ended, also those that failed, and passes on what each gives", async () => {
    const queue = new OneByOne();
    const steps: string[] = [];
    const action = (name: string) => async () => {
      steps.push(`${name} begins`);
      await turn();
      steps.push(`${name} ends`);
      if (name === "second") throw new Error(name);
      return name;
    };
    const results = await Promise.allSettled(
      ["first", "second", "third"].map((name) => queue.run(action(name))),
    );
    expect(steps).toEqual(["first", "second", "third"].flatMap((name) => [`${name} begins`, `${name} ends`]));
    expect(results).toMatchObject([
      { value: "first" },
      { reason: { message: "second" } },
      { value: "third" },
    ]);
  });
});
