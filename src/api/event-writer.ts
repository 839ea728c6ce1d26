import type { CallOptions } from "./call-types.js";

/** The part of gRPC's stream that is needed here. */
export interface MessageStream {
  readonly cancelled: boolean;
  /** False when the client does not keep up; then `drain` tells when it does. */
  write(message: object): boolean;
  on(event: "drain", listener: () => void): unknown;
}

/** What a call tells on its way, and its result. */
export interface EventWriter {
  readonly onProgress: NonNullable<CallOptions["onProgress"]>;
  readonly onServed: NonNullable<CallOptions["onServed"]>;
  readonly result: (message: object) => void;
}

/**
 * Writes the messages of a stream: see the responses of `Backups`. A client that reads slowly gets less progress, which is
 * soon out of date; nothing piles up here. Everything else is sent in any case.
 */
export function eventWriter(stream: MessageStream): EventWriter {
  let isFull = false;
  stream.on("drain", () => (isFull = false));
  const write = (message: object): void => {
    if (!stream.cancelled) isFull = !stream.write(message);
  };
  return {
    onProgress: (progress) => {
      if (!isFull || ("started" in progress && progress.started)) write({ progress });
    },
    onServed: (served) => write({ served }),
    result: (result) => write({ result }),
  };
}
