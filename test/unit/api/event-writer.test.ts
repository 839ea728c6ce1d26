import { describe, expect, it } from "vitest";
import { eventWriter } from "../../../src/api/event-writer.js";

/** A client that has room for a few messages at a time. */
class SlowClient {
  readonly written: object[] = [];
  cancelled = false;
  #room: number;
  #drained: () => void = () => undefined;

  constructor(room: number) {
    this.#room = room;
  }

  write(message: object): boolean {
    this.written.push(message);
    return --this.#room > 0;
  }

  on(_event: "drain", listener: () => void): void {
    this.#drained = listener;
  }

  drain(room: number): void {
    this.#room = room;
    this.#drained();
  }
}

const at = (positionBytes: number) => ({ disk: { target: "vda", positionBytes } });
const started = { started: { level: "FULL", reason: "", disks: [] } } as const;

describe("eventWriter", () => {
  it("leaves progress out while the client does not keep up, and never the start or the result", () => {
    const client = new SlowClient(2);
    const writer = eventWriter(client);
    for (let position = 1; position <= 1000; position++) writer.onProgress(at(position));
    expect(client.written).toEqual([{ progress: at(1) }, { progress: at(2) }]);
    writer.onProgress(started);
    client.drain(1);
    writer.onProgress(at(1001));
    writer.onProgress(at(1002));
    writer.result({ id: "b" });
    expect(client.written.slice(2)).toEqual([
      { progress: started },
      { progress: at(1001) },
      { result: { id: "b" } },
    ]);
  });

  it("writes nothing to a client that has gone", () => {
    const client = new SlowClient(2);
    client.cancelled = true;
    eventWriter(client).result({});
    expect(client.written).toEqual([]);
  });
});
