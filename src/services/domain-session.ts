import type { BlockDriver, DriverFactory } from "../ports/block-driver.js";
import { isFleeceError } from "../shared/errors.js";

/**
 * Access to a domain for the length of an operation. The domain may stop or start meanwhile; then the way to it changes,
 * and undoing must go on by the new one.
 */
export class DomainSession implements AsyncDisposable {
  readonly domain: string;
  readonly #factory: DriverFactory;
  #driver: BlockDriver | undefined;

  constructor(factory: DriverFactory, domain: string) {
    this.#factory = factory;
    this.domain = domain;
  }

  async driver(signal?: AbortSignal): Promise<BlockDriver> {
    this.#driver ??= await this.#factory.open(this.domain, signal);
    return this.#driver;
  }

  /**
   * Runs an idempotent action; if the domain has stopped (it is unreachable) or started (its images are held) since it was
   * opened, once more by the way that works now.
   */
  async resilient<T>(action: (driver: BlockDriver) => Promise<T>): Promise<T> {
    try {
      return await action(await this.driver());
    } catch (error) {
      if (!isFleeceError(error, "DOMAIN_UNREACHABLE", "DISK_IN_USE")) throw error;
      await this.close();
      return action(await this.driver());
    }
  }

  async close(): Promise<void> {
    const driver = this.#driver;
    this.#driver = undefined;
    await driver?.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
