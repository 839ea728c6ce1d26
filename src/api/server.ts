import { Server, ServerCredentials } from "@grpc/grpc-js";
import type {
  sendUnaryData,
  ServerUnaryCall,
  ServerWritableStream,
  UntypedServiceImplementation,
} from "@grpc/grpc-js";
import type { PackageDefinition, ServiceDefinition } from "@grpc/proto-loader";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation } from "grpc-health-check";
import type { Logger } from "../ports/logger.js";
import type { ServiceContext } from "../services/context.js";
import { FleeceError } from "../shared/errors.js";
import { randomId } from "../shared/ids.js";
import type { CallName, CallOptions } from "./call-types.js";
import { CALLS } from "./calls.js";
import { failureOf } from "./failure.js";
import { loadPackage, methodOf } from "./loader.js";
import { type Requests, runRepeatable } from "./repeatable.js";
import { toStatus } from "./status.js";
import { checkRequest } from "./validate.js";

/** A logger that can have a fact in all of its lines. */
export interface ParentLogger extends Logger {
  child(facts: object): Logger;
}

export interface ServerParts {
  readonly context: ServiceContext;
  readonly requests: Requests;
  readonly log: ParentLogger;
}

type WireCall = ServerUnaryCall<object, object> | ServerWritableStream<object, object>;

/** What a stream's messages are made of: see the responses of `Backups`. */
type Events = Pick<CallOptions, "onProgress" | "onServed">;

/** The caller, for ids of requests: whoever may use the Unix socket is the same user. */
const LOCAL = "local";

/** How long answers that are complete may take to leave. */
const FLUSH_MS = 1000;

/** The calls of the API over gRPC, with health checking and reflection. */
export class ApiServer {
  readonly #context: ServiceContext;
  readonly #requests: Requests;
  readonly #log: ParentLogger;
  readonly #server = new Server({ "grpc.max_receive_message_length": 1024 * 1024 });
  readonly #health: HealthImplementation;
  readonly #services: readonly string[];
  readonly #running = new Map<AbortController, Promise<unknown>>();
  #stopping = false;

  constructor({ context, requests, log }: ServerParts) {
    this.#context = context;
    this.#requests = requests;
    this.#log = log;
    const definitions = loadPackage();
    this.#services = [...new Set(Object.keys(CALLS).map((name) => `fleece.v1.${name.split(".")[0] ?? ""}`))];
    for (const service of this.#services) {
      this.#server.addService(
        definitions[service] as ServiceDefinition,
        this.#handlers(definitions, service),
      );
    }
    this.#health = new HealthImplementation();
    this.#health.addToServer(this.#server);
    this.#setHealth("SERVING");
    new ReflectionService(definitions, { services: [...this.#services] }).addToServer(this.#server);
  }

  /**
   * Answers on a Unix socket, which is created with mode 0600. To be awaited alone: files that the process creates
   * meanwhile would get that mode, too.
   */
  async listen(socketPath: string): Promise<void> {
    const before = process.umask(0o177);
    try {
      await new Promise<void>((resolve, reject) => {
        this.#server.bindAsync(`unix:${socketPath}`, ServerCredentials.createInsecure(), (error) =>
          error === null ? resolve() : reject(error),
        );
      });
    } finally {
      process.umask(before);
    }
  }

  /**
   * Takes no more calls, and lets those that run go on for the grace period. Then they are cancelled, and waited for while
   * they undo what they have made. Removes the socket.
   */
  async close(graceMs: number): Promise<void> {
    this.#stopping = true;
    this.#setHealth("NOT_SERVING");
    const closed = new Promise<void>((resolve) => this.#server.tryShutdown(() => resolve()));
    await within(graceMs, this.#idle());
    for (const controller of this.#running.keys()) {
      controller.abort(new FleeceError("INTERRUPTED", "The agent ends, and the call was cancelled"));
    }
    await this.#idle();
    await within(FLUSH_MS, closed);
    this.#server.forceShutdown();
  }

  async #idle(): Promise<void> {
    await Promise.allSettled(this.#running.values());
  }

  #setHealth(health: "SERVING" | "NOT_SERVING"): void {
    for (const service of ["", ...this.#services]) this.#health.setStatus(service, health);
  }

  #handlers(definitions: PackageDefinition, service: string): UntypedServiceImplementation {
    const names = (Object.keys(CALLS) as CallName[]).filter((name) =>
      `fleece.v1.${name}`.startsWith(`${service}.`),
    );
    return Object.fromEntries(
      names.map((name) => [
        name.split(".")[1] ?? "",
        methodOf(definitions, name).responseStream ? this.#streaming(name) : this.#unary(name),
      ]),
    );
  }

  #unary(name: CallName) {
    return (call: ServerUnaryCall<object, object>, answer: sendUnaryData<object>): void => {
      this.#run(name, call, {}).then(
        (message) => answer(null, message ?? {}),
        (error: unknown) => answer(toStatus(failureOf(error))),
      );
    };
  }

  #streaming(name: CallName) {
    return (call: ServerWritableStream<object, object>): void => {
      let isFull = false;
      call.on("drain", () => (isFull = false));
      const write = (message: object): void => {
        if (!call.cancelled) isFull = !call.write(message);
      };
      const events: Events = {
        // A slow client gets less of what is soon out of date; nothing piles up here.
        onProgress: (progress) => {
          if (!isFull || progress.started) write({ progress });
        },
        onServed: (served) => write({ served }),
      };
      this.#run(name, call, events).then(
        (result) => {
          if (result !== undefined) write({ result });
          call.end();
        },
        (error: unknown) => call.emit("error", toStatus(failureOf(error))),
      );
    };
  }

  /** Rejects with a FleeceError. */
  async #run(name: CallName, call: WireCall, events: Events): Promise<object | undefined> {
    const log = this.#log.child({ call: randomId(8), method: name });
    const controller = new AbortController();
    const { signal } = controller;
    call.on("cancelled", () =>
      controller.abort(
        new FleeceError("INTERRUPTED", "The client cancelled the call, or its deadline passed"),
      ),
    );
    log.info({}, "Call");
    const work = this.#answer(name, call, { ...events, signal }, log);
    this.#running.set(controller, work);
    try {
      const message = await work;
      log.info({}, "Call done");
      return message;
    } catch (error) {
      const failure = failureOf(error, signal);
      const { code, facts, message } = failure;
      if (code === "INTERNAL") log.warn({ code, facts, err: error }, message);
      else log.info({ code, facts }, `Call failed: ${message}`);
      throw failure;
    } finally {
      this.#running.delete(controller);
    }
  }

  async #answer(
    name: CallName,
    { request }: WireCall,
    options: CallOptions & { readonly signal: AbortSignal },
    log: Logger,
  ): Promise<object | undefined> {
    if (this.#stopping) throw new FleeceError("AGENT_UNREACHABLE", "The agent ends and takes no more calls");
    checkRequest(name, request);
    return runRepeatable(this.#requests, { ...this.#context, log }, LOCAL, name, request, options);
  }
}

async function within(ms: number, done: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  await Promise.race([done, new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)))]);
  clearTimeout(timer);
}
