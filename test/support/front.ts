import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { NbdFront, type NbdFrontOptions } from "../../src/drivers/front/nbd-front.js";
import type { FrontTlsFiles } from "../../src/drivers/front/front-tls.js";
import { systemClock } from "../../src/drivers/system-clock.js";
import type { Logger } from "../../src/ports/logger.js";
import { untilTestEnds } from "./lifetime.js";

/** The lines that a component logged, debug ones too. */
export class LogLines implements Logger {
  readonly lines: (Readonly<Record<string, unknown>> & { readonly message: string })[] = [];
  readonly debug = (facts: object, message: string) => this.#add(facts, message);
  readonly info = (facts: object, message: string) => this.#add(facts, message);
  readonly warn = (facts: object, message: string) => this.#add(facts, message);

  /** The reasons of refusals, in order. */
  get reasons(): unknown[] {
    return this.lines.filter(({ message }) => /refused|denied/.test(message)).map(({ reason }) => reason);
  }

  #add(facts: object, message: string): void {
    this.lines.push({ ...facts, message });
  }
}

export interface TestFront {
  readonly front: NbdFront;
  readonly log: LogLines;
  readonly port: number;
}

/** A front on a port of 127.0.0.1, closed at the end of the test. */
export async function startFront(options: Partial<NbdFrontOptions> = {}): Promise<TestFront> {
  const log = new LogLines();
  const front = untilTestEnds(
    new NbdFront({ tls: "plaintext", clock: systemClock, logger: log, ...options }),
  );
  const address = await front.listen({ host: "127.0.0.1", port: 0 });
  if (!("port" in address)) throw new Error("The front has no port");
  return { front, log, port: address.port };
}

/** The server's files in a directory of `makeCertificates`. */
export async function serverFiles(directory: string): Promise<FrontTlsFiles> {
  const pem = (name: string) => readFile(join(directory, name));
  return {
    ca: await pem("ca-cert.pem"),
    cert: await pem("server-cert.pem"),
    key: await pem("server-key.pem"),
  };
}
