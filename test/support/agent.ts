import { Client, credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { loadPackage, methodOf } from "../../src/api/loader.js";
import type { CallName } from "../../src/api/call-types.js";
import { startFleece, type FleeceProcess } from "./fleece.js";
import { untilTestEnds } from "./lifetime.js";
import type { Site } from "./site.js";

const START_MS = 60_000;

/** The agent of a site, ready to be called; it ends with the test. */
export async function startAgent(at: Site): Promise<FleeceProcess> {
  const agent = untilTestEnds(await startFleece(["serve"], { configPath: at.configPath }));
  await agent.waitForOutput(/The agent answers on/, { timeoutMs: START_MS });
  return agent;
}

export function agentSocket(at: Site): string {
  return at.directory.file("run/agent.sock");
}

export type Fields = Readonly<Record<string, unknown>>;

/** A client as a vendor writes it: gRPC and the .proto files, nothing of ours, no second try. */
export class VendorClient {
  readonly #client: Client;
  readonly #definitions = loadPackage();

  constructor(at: Site) {
    this.#client = new Client(`unix:${agentSocket(at)}`, credentials.createInsecure());
  }

  /** Resolves with the answer; of a stream with its result, or with what is served. Rejects with what gRPC says. */
  async call(name: CallName, request: Fields): Promise<Fields> {
    const { path, requestSerialize, responseDeserialize, responseStream } = methodOf(this.#definitions, name);
    return new Promise((resolve, reject) => {
      const answer = (error: ServiceError | null, message?: object): void =>
        error === null ? resolve({ ...message }) : reject(error);
      const parts = [path, requestSerialize, responseDeserialize, request] as const;
      if (!responseStream) {
        this.#client.makeUnaryRequest(...parts, new Metadata(), answer);
        return;
      }
      const stream = this.#client.makeServerStreamRequest(...parts);
      stream.on("data", ({ result, served }: { result?: Fields; served?: Fields }) => {
        const found = result ?? served;
        if (found !== undefined) resolve(found);
      });
      stream.on("end", () => reject(new Error("The stream ended without a result")));
      stream.on("error", reject);
    });
  }

  /** Also cancels what is under way. */
  close(): void {
    this.#client.close();
  }
}
