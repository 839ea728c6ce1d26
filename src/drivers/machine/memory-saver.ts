import type { Clock } from "../../ports/clock.js";
import { isEvent, type QmpSession } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";
import type { MigrationCapability } from "../../qmp/index.js";
import type { MemoryFile } from "./memory-file.js";
import { MIGRATION_ENDED } from "./settle-guest.js";

export interface SaveParts {
  readonly qmp: QmpSession;
  readonly clock: Clock;
  readonly domain: string;
  readonly into: MemoryFile;
  /** The guest runs meanwhile; QEMU stops it at the end. */
  readonly live: boolean;
  /** For how long a live guest may change its memory faster than it is saved; then it is stopped. In milliseconds. */
  readonly convergeWithinMs: number;
  readonly onProgress: (savedBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal | undefined;
}

/** Progress, cancellation and the limit are looked at this often; the end is told by an event. */
const LOOK_EVERY_MS = 100;
const SETTLE_POLL_MS = 2;
/** From QEMU's word that all is sent to its end of the connection. */
const CLOSE_WITHIN_MS = 10_000;
const NEVER = new AbortController().signal;

/**
 * Saves a guest's memory and devices. When it resolves, the guest is stopped (`postmigrate`), QEMU has given up its images,
 * and the file is complete. When it rejects, the saving may still be under way: `settleGuest` ends it. Fails with
 * MEMORY_SAVE_FAILED, or with what writing the file failed with.
 */
export async function saveMemory(parts: SaveParts): Promise<void> {
  const { qmp, clock, into, live, convergeWithinMs, onProgress, signal } = parts;
  const bell = new Bell();
  const onAbort = (): void => bell.ring();
  signal?.addEventListener("abort", onAbort);
  into.onFailure(() => bell.ring());
  const stop = qmp.onEvent((event) => {
    if (isEvent(event, "MIGRATION")) bell.ring();
  });
  try {
    await qmp.execute("migrate", { uri: `unix:${into.socketPath}` });
    const start = clock.monotonicMs();
    let mayRun = live;
    for (;;) {
      const info = await qmp.execute("query-migrate");
      if (info.ram !== undefined) onProgress(info.ram.transferred, info.ram.total);
      const { status = "none" } = info;
      if (status === "completed") break;
      signal?.throwIfAborted();
      if (into.failure !== undefined) throw asError(into.failure);
      if (MIGRATION_ENDED.has(status)) {
        // A file that cannot be written is the end of a connection to QEMU, of which it may know before us.
        if (into.isConnected) await closed(parts);
        throw saveFailed(parts, info["error-desc"] ?? unexplained(status));
      }
      if (mayRun && clock.monotonicMs() - start > convergeWithinMs) {
        mayRun = false;
        await qmp.execute("stop");
      }
      await bell.wait(LOOK_EVERY_MS, clock);
    }
    await settled(parts);
    await closed(parts);
  } finally {
    stop();
    signal?.removeEventListener("abort", onAbort);
  }
}

/** QEMU says that it has completed before its run state has changed, and before the images are given up. */
async function settled({ qmp, clock, signal }: SaveParts): Promise<void> {
  for (;;) {
    const { status } = await qmp.execute("query-status");
    if (status === "postmigrate") return;
    if (status !== "finish-migrate") {
      throw new FleeceError(
        "MEMORY_SAVE_FAILED",
        `Expected QEMU's state after saving to be postmigrate, got ${status}`,
      );
    }
    signal?.throwIfAborted();
    await clock.sleep(SETTLE_POLL_MS, NEVER);
  }
}

/** Fails with what writing the file failed with. */
async function closed(parts: SaveParts): Promise<void> {
  const { into, clock } = parts;
  const limit = new AbortController();
  const tooLate = clock.sleep(CLOSE_WITHIN_MS, limit.signal).then(
    () => true,
    () => false,
  );
  const isLate = await Promise.race([into.received.then(() => false), tooLate]);
  limit.abort();
  if (into.failure !== undefined) throw asError(into.failure);
  if (isLate) throw saveFailed(parts, `QEMU did not end its stream within ${CLOSE_WITHIN_MS / 1000} s`);
}

function saveFailed({ domain }: SaveParts, why: string): FleeceError {
  return new FleeceError("MEMORY_SAVE_FAILED", `The memory of domain ${domain} could not be saved: ${why}`, {
    facts: { domain },
  });
}

/** QEMU 7.2 says nothing of what goes wrong when it gives up its images, and stores the bitmaps in them. */
function unexplained(status: string): string {
  return `the migration is ${status}, and QEMU does not say why; perhaps there is no room for the bitmaps in a disk's image`;
}

function asError(failure: unknown): Error {
  return failure instanceof Error ? failure : new Error(String(failure));
}

/**
 * With any of these the stream is not what a new QEMU can read from a file, or the disks are part of it; or it cannot be on without
 * one that is so. No QEMU has all of them.
 */
const UNWANTED: readonly MigrationCapability[] = [
  "xbzrle",
  "rdma-pin-all",
  "compress",
  "postcopy-ram",
  "x-colo",
  "release-ram",
  "block",
  "return-path",
  "pause-before-switchover",
  "multifd",
  "dirty-bitmaps",
  "x-ignore-shared",
  "background-snapshot",
  "zero-copy-send",
  "postcopy-preempt",
  "switchover-ack",
  "mapped-ram",
];
/** Bytes per second: without a limit. */
const UNLIMITED = 2 ** 40;

/** Sets QEMU's migration up for a file, and on disposal as it was. */
export async function forFile(qmp: QmpSession): Promise<AsyncDisposable> {
  const capabilities = await qmp.execute("query-migrate-capabilities");
  const isOn = new Map(capabilities.map(({ capability, state }) => [capability, state]));
  const wanted = [
    ...UNWANTED.filter((capability) => isOn.get(capability) === true).map((capability) => ({
      capability,
      state: false,
    })),
    ...(isOn.get("events") === true ? [] : [{ capability: "events" as const, state: true }]),
  ];
  const { "max-bandwidth": bandwidth } = await qmp.execute("query-migrate-parameters");
  const set = async (list: typeof wanted): Promise<void> => {
    if (list.length > 0) await qmp.execute("migrate-set-capabilities", { capabilities: list });
  };
  await set(wanted);
  await qmp.execute("migrate-set-parameters", { "max-bandwidth": UNLIMITED });
  return {
    async [Symbol.asyncDispose]() {
      // Of a QEMU that has ended there is nothing to restore.
      await set(wanted.map(({ capability, state }) => ({ capability, state: !state }))).catch(
        () => undefined,
      );
      if (bandwidth === undefined) return;
      await qmp.execute("migrate-set-parameters", { "max-bandwidth": bandwidth }).catch(() => undefined);
    },
  };
}

/** Wakes one who waits; a ring that comes early is not lost. */
class Bell {
  #rung = false;
  #wake: (() => void) | undefined;

  ring(): void {
    this.#rung = true;
    this.#wake?.();
  }

  async wait(ms: number, clock: Clock): Promise<void> {
    if (!this.#rung) {
      const limit = new AbortController();
      const rung = new Promise<void>((resolve) => (this.#wake = resolve));
      await Promise.race([rung, clock.sleep(ms, limit.signal).catch(() => undefined)]);
      limit.abort();
    }
    this.#rung = false;
    this.#wake = undefined;
  }
}
