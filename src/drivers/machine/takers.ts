import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { lstat, mkdir, stat, unlink } from "node:fs/promises";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import type { DomainConfig } from "../../model/config.js";
import type { NewFile, Place } from "../../model/domain-snapshot-plan.js";
import type { Clock } from "../../ports/clock.js";
import type { SnapshotTaker, SnapshotTakers } from "../../ports/snapshot-taker.js";
import { errnoOf, fileError, FleeceError } from "../../shared/errors.js";
import { syncDirectory } from "../durable-files.js";
import { freeBytes } from "../free-bytes.js";
import { configOf, disksOf, reachDomain } from "../reach-domain.js";
import { InactiveTaker } from "./inactive-taker.js";
import { syncFile } from "./overlays.js";
import { RunningTaker } from "./running-taker.js";

/** A live guest that changes its memory faster than it is saved is stopped after this time. */
const CONVERGE_WITHIN_MS = 60_000;

export interface QemuTakersOptions {
  readonly domains: readonly DomainConfig[];
  readonly clock: Clock;
  readonly runtimeRoot: string;
  /** Default: 60,000. */
  readonly convergeWithinMs?: number;
}

export class QemuTakers implements SnapshotTakers {
  readonly #options: QemuTakersOptions;

  constructor(options: QemuTakersOptions) {
    this.#options = options;
  }

  async open(domain: string, signal?: AbortSignal): Promise<SnapshotTaker> {
    const { domains, clock, runtimeRoot, convergeWithinMs = CONVERGE_WITHIN_MS } = this.#options;
    const config = configOf(domains, domain);
    const reached = await reachDomain(config, signal);
    if (!reached.running) return new InactiveTaker(disksOf(config, reached), clock);
    const { qmp, qmpSocketPath } = reached;
    return new RunningTaker({ qmp, config, clock, qmpSocketPath, runtimeRoot, convergeWithinMs });
  }

  async place(directory: string): Promise<Place | undefined> {
    try {
      const found = await stat(directory);
      if (!found.isDirectory()) return undefined;
      return { device: String(found.dev), freeBytes: await freeBytes(directory) };
    } catch (error) {
      if (["ENOENT", "ENOTDIR"].includes(errnoOf(error) ?? "")) return undefined;
      throw fileError(error, "look at", directory);
    }
  }

  async exists(file: string): Promise<boolean> {
    try {
      await lstat(file);
      return true;
    } catch (error) {
      if (["ENOENT", "ENOTDIR"].includes(errnoOf(error) ?? "")) return false;
      throw fileError(error, "look at", file);
    }
  }

  async makeDirectory(directory: string): Promise<void> {
    try {
      await mkdir(directory, { mode: 0o700 });
    } catch (error) {
      throw fileError(error, "create the directory", directory);
    }
    await syncDirectory(path.dirname(directory));
  }

  async dropFirstName({ path: file, firstName }: NewFile): Promise<void> {
    try {
      await unlink(firstName);
    } catch (error) {
      if (errnoOf(error) !== "ENOENT") throw fileError(error, "remove", firstName);
    }
    await syncDirectory(path.dirname(file));
  }

  async seal(file: string, sizeBytes: number, signal?: AbortSignal): Promise<string> {
    await syncFile(file);
    const hash = createHash("sha256");
    const source = createReadStream(file, { highWaterMark: READ_BYTES });
    try {
      await pipeline(source, hash, signal === undefined ? {} : { signal });
    } catch (error) {
      throw fileError(error, "read", file);
    }
    const found = (await stat(file)).size;
    if (found === sizeBytes) return hash.digest("hex");
    throw new FleeceError("DAMAGED", `Expected ${sizeBytes} bytes in ${file}, got ${found}`, {
      facts: { path: file },
    });
  }
}

const READ_BYTES = 1 << 20;
