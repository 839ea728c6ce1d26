import type { BlockDriver } from "../../src/ports/block-driver.js";
import { FleeceError } from "../../src/shared/errors.js";
import type { Gate } from "./fake-domain.js";

/** What a method returns that has methods of its own to be gated. */
const RETURNED: Readonly<Record<string, string>> = {
  begin: "draft",
  disk: "sink",
  lock: "lock",
  lockDomain: "lock",
  open: "reader",
};

/** Methods that answer at once; they cannot fail in the middle. */
const IMMEDIATE: ReadonlySet<string> = new Set([
  "disk",
  "expect",
  "extents",
  "image",
  "isAlive",
  "release",
  "self",
]);

/** The same object, but each of its asynchronous methods waits for the gate before it acts and after it has acted. */
export function gated<T extends object>(target: T, name: string, gate: Gate): T {
  return new Proxy(target, {
    get(inner, key) {
      const value: unknown = Reflect.get(inner, key, inner);
      if (typeof value !== "function" || typeof key === "symbol") return bound(value, inner);
      const method = (...args: unknown[]): unknown => Reflect.apply(value, inner, args) as unknown;
      const wrap = (result: unknown): unknown => {
        const part = RETURNED[key];
        return part !== undefined && typeof result === "object" && result !== null
          ? gated(result, part, gate)
          : result;
      };
      if (IMMEDIATE.has(key)) return (...args: unknown[]) => wrap(method(...args));
      return async (...args: unknown[]) => {
        await gate(`${name}.${key}: before`);
        const result = await method(...args);
        await gate(`${name}.${key}: after`);
        return wrap(result);
      };
    },
  });
}

function bound(value: unknown, target: object): unknown {
  return typeof value === "function" ? (value.bind(target) as unknown) : value;
}

export interface FailAt {
  /** Which call of the driver fails, from 1. */
  readonly call: number;
  readonly when: "before" | "after";
  /** `unreachable`: this and every later call fails with DOMAIN_UNREACHABLE. */
  readonly how: "once" | "unreachable";
}

/** Any driver with a fault in one of its calls, before or after that took effect. */
export function failing(driver: BlockDriver, at: FailAt): BlockDriver {
  let calls = 0;
  return gated(driver, "driver", (point) => {
    if (point.startsWith("driver.close")) return;
    const before = point.endsWith("before");
    if (before) calls++;
    const broken = calls > at.call || (calls === at.call && (at.when === "before" || !before));
    if (broken && at.how === "unreachable") {
      throw new FleeceError("DOMAIN_UNREACHABLE", `The connection broke at call ${at.call}`);
    }
    if (broken && calls === at.call) throw new FleeceError("QEMU_FAILED", `Call ${at.call} was made to fail`);
  });
}
