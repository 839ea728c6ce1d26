import { onTestFinished } from "vitest";
import { TemporaryDirectory } from "./temporary-directory.js";

/** Hands a resource to the running test, which disposes of it at its end; the last one handed over goes first. */
export function untilTestEnds<T extends AsyncDisposable>(resource: T): T {
  onTestFinished(() => resource[Symbol.asyncDispose]());
  return resource;
}

/** A private directory that lives as long as the running test. */
export async function temporaryDirectory(): Promise<TemporaryDirectory> {
  return untilTestEnds(await TemporaryDirectory.create());
}
