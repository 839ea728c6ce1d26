import { describe, expect, it } from "vitest";
import { StateDirectory } from "../../../src/drivers/state-directory.js";
import { RequestLog, type NamedRequest } from "../../../src/services/request-log.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const HOUR_MS = 3_600_000;
const REQUEST: NamedRequest = { caller: "a", method: "Things.Make", id: "1", content: "{}" };
const cancelled = (): FleeceError => new FleeceError("INTERRUPTED", "The client has gone");

type Work = Parameters<RequestLog<string, string>["run"]>[2];

/** An agent's log, on a state directory that outlives it. */
async function state() {
  const { path } = await temporaryDirectory();
  const store = new StateDirectory(path);
  const clock = {
    timeMs: 1_795_260_000_000,
    now: () => clock.timeMs,
    monotonicMs: () => clock.timeMs,
    hostTime: () => ({ start: "host", ms: clock.timeMs }),
    sleep: () => Promise.resolve(),
  };
  const log = { debug: () => undefined, info: () => undefined, warn: () => undefined };
  return { store, clock, agent: () => RequestLog.open<string, string>({ store, clock, log }) };
}

const anyone = () => ({ signal: new AbortController().signal });

/** Work that is counted, and answers with its number. */
function counted(fail?: () => Error): { readonly work: Work; readonly times: () => number } {
  let times = 0;
  const work = (): Promise<object> => {
    times++;
    return fail === undefined ? Promise.resolve({ made: times }) : Promise.reject(fail());
  };
  return { work, times: () => times };
}

/** Work that goes on until it is told to end or cancelled. */
function lasting() {
  let end: (answer: object) => void = () => undefined;
  let tell: (progress: string) => void = () => undefined;
  const seen = { times: 0, cancelled: 0 };
  const work: Work = ({ signal, onProgress }) =>
    new Promise((resolve, reject) => {
      seen.times++;
      end = resolve;
      tell = onProgress;
      signal.addEventListener("abort", () => {
        seen.cancelled++;
        setTimeout(() => reject(signal.reason as Error), 5);
      });
    });
  return { work, seen, end: (answer: object) => end(answer), tell: (progress: string) => tell(progress) };
}

async function started(seen: { readonly times: number }, times = 1): Promise<void> {
  await expect.poll(() => seen.times).toBe(times);
}

describe("a request that is sent again", () => {
  it("gets the same answer, also from a later agent, and is not done again", async () => {
    const { agent } = await state();
    const first = await agent();
    const { work, times } = counted();
    expect(await first.run(REQUEST, anyone(), work)).toEqual({ made: 1 });
    expect(await first.run(REQUEST, anyone(), work)).toEqual({ made: 1 });
    expect(await (await agent()).run(REQUEST, anyone(), work)).toEqual({ made: 1 });
    expect(times()).toBe(1);
  });

  it("is another one with another id, method or caller", async () => {
    const log = await (await state()).agent();
    const { work, times } = counted();
    for (const change of [{}, { id: "2" }, { method: "Things.Delete" }, { caller: "b" }]) {
      await log.run({ ...REQUEST, ...change }, anyone(), work);
    }
    expect(times()).toBe(4);
  });

  it("is refused with other fields, while the first runs and afterwards", async () => {
    const log = await (await state()).agent();
    const { work, seen, end } = lasting();
    const first = log.run(REQUEST, anyone(), work);
    await started(seen);
    const other = { ...REQUEST, content: '{"more":1}' };
    const refusal = { code: "REQUEST_ID_REUSED", category: "usage" };
    await expect(log.run(other, anyone(), work)).rejects.toMatchObject(refusal);
    end({});
    await first;
    await expect(log.run(other, anyone(), work)).rejects.toMatchObject(refusal);
    expect(seen.times).toBe(1);
  });

  it("fails as the first did, unless that may pass", async () => {
    const log = await (await state()).agent();
    const lost = counted(() => new FleeceError("SNAPSHOT_BROKEN", "Lost", { facts: { snapshot: "s" } }));
    const busy = counted(() => new FleeceError("DOMAIN_BUSY", "Busy"));
    const wrong = counted(() => new FleeceError("INVALID_ARGUMENT", "Wrong"));
    for (const { work } of [lost, busy, wrong, lost, busy, wrong]) {
      const id = work === lost.work ? "lost" : work === busy.work ? "busy" : "wrong";
      await expect(log.run({ ...REQUEST, id }, anyone(), work)).rejects.toThrow();
    }
    await expect(log.run({ ...REQUEST, id: "lost" }, anyone(), lost.work)).rejects.toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: "Lost",
      facts: { snapshot: "s" },
    });
    expect([lost.times(), busy.times(), wrong.times()]).toEqual([1, 2, 2]);
  });

  it("is new after a day, also if the clock was set", async () => {
    const { agent, clock } = await state();
    const log = await agent();
    const { work, times } = counted();
    await log.run(REQUEST, anyone(), work);
    clock.timeMs += 23 * HOUR_MS;
    await log.run(REQUEST, anyone(), work);
    expect(times()).toBe(1);
    clock.timeMs -= 2 * 24 * HOUR_MS;
    await log.run(REQUEST, anyone(), work);
    expect(times()).toBe(2);
  });

  it("has its answer among the last two thousand", async () => {
    const { agent, store } = await state();
    for (let number = 0; number < 2000; number++) {
      await store.writeNote("requests", `old${number}`, { schemaVersion: 1, timeMs: 1_795_260_000_000 });
    }
    const log = await agent();
    const { work, times } = counted();
    await log.run(REQUEST, anyone(), work);
    await log.run(REQUEST, anyone(), work);
    expect(times()).toBe(1);
    expect(await store.notes("requests")).toHaveLength(2000);
  });

  it("joins the one that runs, and is told the same", async () => {
    const log = await (await state()).agent();
    const { work, seen, end, tell } = lasting();
    const heard: string[] = [];
    const caller = (name: string) => ({
      ...anyone(),
      onProgress: (progress: string) => void heard.push(`${name}: ${progress}`),
    });
    const first = log.run(REQUEST, caller("first"), work);
    await started(seen);
    const second = log.run(REQUEST, caller("second"), work);
    tell("half");
    end({ done: true });
    expect(await Promise.all([first, second])).toEqual([{ done: true }, { done: true }]);
    expect(heard).toEqual(["first: half", "second: half"]);
    expect(seen).toEqual({ times: 1, cancelled: 0 });
  });

  it("is cancelled only when all who wait have gone, and then done anew", async () => {
    const log = await (await state()).agent();
    const { work, seen, end } = lasting();
    const [one, two] = [new AbortController(), new AbortController()];
    const first = log.run(REQUEST, { signal: one.signal }, work);
    await started(seen);
    const second = log.run(REQUEST, { signal: two.signal }, work);
    one.abort(cancelled());
    await expect(first).rejects.toMatchObject({ code: "INTERRUPTED" });
    expect(seen.cancelled).toBe(0);
    two.abort(cancelled());
    expect(seen.cancelled).toBe(1);
    const third = log.run(REQUEST, anyone(), work);
    await expect(second).rejects.toMatchObject({ code: "INTERRUPTED" });
    await started(seen, 2);
    end({ made: "anew" });
    expect(await third).toEqual({ made: "anew" });
  });

  it("is answered as promised if it was killed after its effect", async () => {
    const { agent } = await state();
    const gone = new FleeceError("CHECKPOINT_NOT_FOUND", "It is gone");
    let killed: () => void = () => undefined;
    const kill = new Promise<void>((resolve) => (killed = resolve));
    const dying: Work = async ({ promise }) => {
      await promise({ name: "cp" });
      killed();
      return new Promise(() => undefined);
    };
    void (await agent()).run(REQUEST, anyone(), dying);
    await kill;
    const next = await agent();
    expect(await next.run(REQUEST, anyone(), () => Promise.reject(gone))).toEqual({ name: "cp" });
    const never = { ...REQUEST, id: "2" };
    await expect(next.run(never, anyone(), () => Promise.reject(gone))).rejects.toBe(gone);
  });
});
