import type { Socket } from "node:net";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import type {
  ConnectionInjector,
  sendUnaryData,
  ServerUnaryCall,
  ServerWritableStream,
  UntypedServiceImplementation,
} from "@grpc/grpc-js";
import type { PackageDefinition, ServiceDefinition } from "@grpc/proto-loader";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation } from "grpc-health-check";
import { LOCAL_NAME, type Client, type ClientEntry, type Role } from "../model/access.js";
import type { HostPort } from "../model/host-port.js";
import type { AuditLog } from "../ports/audit-log.js";
import type { Logger } from "../ports/logger.js";
import type { ServiceContext } from "../services/context.js";
import { FleeceError } from "../shared/errors.js";
import { randomId } from "../shared/ids.js";
import { admission } from "./admission.js";
import { CallAudit, callerFacts } from "./call-audit.js";
import { type CallLimits, CallSlots } from "./call-slots.js";
import type { CallName, CallOptions } from "./call-types.js";
import { type Caller, certifiedCaller, type Identify, localCaller, requireClient } from "./caller.js";
import { CALLS } from "./calls.js";
import { type AgentTls, ConnectionGate, type ConnectionLimits } from "./connection-gate.js";
import { denialOf } from "./denial.js";
import { eventWriter } from "./event-writer.js";
import { failureOf } from "./failure.js";
import { loadPackage, methodOf } from "./loader.js";
import type { CallMeter } from "./metrics.js";
import { type Requests, runRepeatable } from "./repeatable.js";
import { toStatus } from "./status.js";
import { checkRequest, tolerant } from "./validate.js";

/** A logger that can have a fact in all of its lines. */
export interface ParentLogger extends Logger {
  child(facts: object): Logger;
}

export interface ServerParts {
  readonly context: ServiceContext;
  readonly requests: Requests;
  readonly log: ParentLogger;
  readonly calls?: CallMeter;
  readonly audit: AuditLog;
  /** Who may use a TCP address. */
  readonly clients?: readonly ClientEntry[];
  /** What users of the Unix socket may do; left out: everything. */
  readonly socketRole?: Role;
  readonly limits?: Partial<ApiLimits>;
}

export type ApiLimits = CallLimits & ConnectionLimits;

const DEFAULT_LIMITS: ApiLimits = {
  calls: 128,
  callsPerClient: 16,
  connections: 64,
  connectionsPerClient: 16,
};

/** What gRPC itself bounds, for each connection. Node takes at most 128 header lines. */
const LARGEST_REQUEST_BYTES = 1024 * 1024;
const OPTIONS = {
  "grpc.max_receive_message_length": LARGEST_REQUEST_BYTES,
  "grpc.max_concurrent_streams": 64,
  // A client that is gone without a word is noticed, and its calls are cancelled.
  "grpc.keepalive_time_ms": 60_000,
  "grpc.keepalive_timeout_ms": 20_000,
  "grpc.max_connection_idle_ms": 5 * 60_000,
  // Handshakes look at certificates again. Calls that run are not disturbed.
  "grpc.max_connection_age_ms": 3600_000,
  "grpc.enable_channelz": 0,
};

type WireCall = ServerUnaryCall<object, object> | ServerWritableStream<object, object>;

type Events = Pick<CallOptions, "onProgress" | "onServed">;

/** How long answers that are complete may take to leave. */
const FLUSH_MS = 1000;

/** A gRPC server and the connections that it gets. */
interface Transport {
  readonly server: Server;
  readonly gate: ConnectionGate;
}

/** The calls of the API over gRPC, with health checking and reflection. */
export class ApiServer {
  #context: ServiceContext;
  readonly #requests: Requests;
  readonly #log: ParentLogger;
  readonly #calls: CallMeter | undefined;
  readonly #audit: CallAudit;
  readonly #clients: readonly ClientEntry[];
  readonly #socketRole: Role;
  readonly #limits: ApiLimits;
  readonly #slots: CallSlots;
  readonly #definitions = loadPackage();
  readonly #transports: Transport[] = [];
  readonly #health = new HealthImplementation();
  readonly #services: readonly string[];
  readonly #running = new Map<AbortController, Promise<unknown>>();
  #stopping = false;

  constructor({ context, requests, log, audit, calls, clients, socketRole, limits }: ServerParts) {
    this.#context = context;
    this.#requests = requests;
    this.#log = log;
    this.#calls = calls;
    this.#audit = new CallAudit({ audit, log, clock: context.clock });
    this.#clients = clients ?? [];
    this.#socketRole = socketRole ?? "administrator";
    this.#limits = { ...DEFAULT_LIMITS, ...limits };
    this.#slots = new CallSlots(this.#limits);
    this.#services = [...new Set(Object.keys(CALLS).map((name) => `fleece.v1.${name.split(".")[0] ?? ""}`))];
    this.#setHealth("SERVING");
  }

  /** Answers on a Unix socket, which is created with mode 0600. Its users are the client `local`. */
  async listen(socketPath: string): Promise<void> {
    const identify = localCaller({ name: LOCAL_NAME, role: this.#socketRole });
    const { gate } = this.#transport(identify);
    const before = process.umask(0o177);
    let listening;
    try {
      listening = gate.listen({ path: socketPath });
    } finally {
      process.umask(before);
    }
    await listening;
  }

  /** Answers on a TCP address, to certificates that the authority has signed. Resolves to it, with the port. */
  async listenTls(address: HostPort, tls: AgentTls): Promise<HostPort> {
    const { clock } = this.#context;
    const identify = certifiedCaller(this.#clients, () => clock.now());
    const bound = await this.#transport(identify, tls).gate.listen(address);
    return typeof bound === "object" && bound !== null ? { ...address, port: bound.port } : address;
  }

  /** Each transport has a server of its own, so that its way to tell who calls cannot be had over another. */
  #transport(identify: Identify, tls?: AgentTls): Transport {
    const server = new Server({ ...OPTIONS, interceptors: [admission(identify)] });
    for (const service of this.#services) {
      const definition = this.#definitions[service] as ServiceDefinition;
      const tolerated = Object.entries(definition).map(([name, method]) => [
        name,
        { ...method, requestDeserialize: tolerant(method.requestDeserialize) },
      ]);
      server.addService(
        Object.fromEntries(tolerated) as ServiceDefinition,
        this.#handlers(this.#definitions, service, identify),
      );
    }
    this.#health.addToServer(server);
    new ReflectionService(this.#definitions, { services: [...this.#services] }).addToServer(server);
    // What comes here is secured already, or needs not be.
    const injector: ConnectionInjector = server.createConnectionInjector(ServerCredentials.createInsecure());
    const gate = new ConnectionGate({
      limits: this.#limits,
      admit: (socket: Socket) => injector.injectConnection(socket),
      refused: (facts) => void this.#audit.refused(facts),
      ...(tls === undefined ? {} : { tls }),
    });
    const transport = { server, gate };
    this.#transports.push(transport);
    return transport;
  }

  /** For new calls; those that run end with what they began with. */
  use(context: ServiceContext): void {
    this.#context = context;
  }

  /**
   * Takes no more calls, and lets those that run go on for the grace period. Then they are cancelled, and waited for while
   * they undo what they have made. Removes the socket.
   */
  async close(graceMs: number): Promise<void> {
    this.#stopping = true;
    this.#setHealth("NOT_SERVING");
    for (const { gate } of this.#transports) gate.close();
    const closed = Promise.all(
      this.#transports.map(
        ({ server }) => new Promise<void>((resolve) => server.tryShutdown(() => resolve())),
      ),
    );
    await within(graceMs, this.#idle());
    if (this.#running.size > 0)
      this.#log.warn({ calls: this.#running.size }, "The grace period is over: cancelling calls");
    for (const controller of this.#running.keys()) {
      controller.abort(new FleeceError("INTERRUPTED", "The agent ends, and the call was cancelled"));
    }
    await this.#idle();
    await within(FLUSH_MS, closed);
    for (const { server } of this.#transports) server.forceShutdown();
  }

  async #idle(): Promise<void> {
    await Promise.allSettled(this.#running.values());
  }

  #setHealth(health: "SERVING" | "NOT_SERVING"): void {
    for (const service of ["", ...this.#services]) this.#health.setStatus(service, health);
  }

  #handlers(
    definitions: PackageDefinition,
    service: string,
    identify: Identify,
  ): UntypedServiceImplementation {
    const names = (Object.keys(CALLS) as CallName[]).filter((name) =>
      `fleece.v1.${name}`.startsWith(`${service}.`),
    );
    return Object.fromEntries(
      names.map((name) => [
        name.split(".")[1] ?? "",
        methodOf(definitions, name).responseStream
          ? this.#streaming(name, identify)
          : this.#unary(name, identify),
      ]),
    );
  }

  #unary(name: CallName, identify: Identify) {
    return (call: ServerUnaryCall<object, object>, answer: sendUnaryData<object>): void => {
      this.#run(name, call, identify, {}).then(
        (message) => answer(null, message ?? {}),
        (error: unknown) => answer(toStatus(failureOf(error))),
      );
    };
  }

  #streaming(name: CallName, identify: Identify) {
    return (call: ServerWritableStream<object, object>): void => {
      const { result: writeResult, ...events } = eventWriter(call);
      this.#run(name, call, identify, events).then(
        (result) => {
          if (result !== undefined) writeResult(result);
          call.end();
        },
        (error: unknown) => call.emit("error", toStatus(failureOf(error))),
      );
    };
  }

  /** Rejects with a FleeceError. */
  async #run(
    name: CallName,
    call: WireCall,
    identify: Identify,
    events: Events,
  ): Promise<object | undefined> {
    const id = randomId(8);
    const log = this.#log.child({ call: id, method: name });
    const controller = new AbortController();
    const { signal } = controller;
    call.on("cancelled", () =>
      controller.abort(
        new FleeceError("INTERRUPTED", "The client cancelled the call, or its deadline passed"),
      ),
    );
    const callEnds = this.#calls?.callBegins(name);
    const work = this.#answer({ id, name, call, identify, options: { ...events, signal }, log });
    this.#running.set(controller, work);
    try {
      const message = await work;
      log.info({}, "Call done");
      callEnds?.();
      return message;
    } catch (error) {
      const failure = failureOf(error, signal);
      const { code, facts, message } = failure;
      callEnds?.(code);
      if (code === "INTERNAL") log.warn({ code, facts, err: error }, message);
      else log.info({ code, facts }, `Call failed: ${message}`);
      throw failure;
    } finally {
      this.#running.delete(controller);
    }
  }

  /** The one place where it is decided whether a client may make a call. */
  async #answer(incoming: Incoming): Promise<object | undefined> {
    const { id, name, call, identify, options, log } = incoming;
    if (this.#stopping) throw new FleeceError("AGENT_UNREACHABLE", "The agent ends and takes no more calls");
    const { caller, client, ...entered } = await this.#enter(id, name, call, identify);
    using _slot = entered.slot;
    const { request } = call;
    log.info(callerFacts(caller), "Call");
    const audited = { call: id, method: name, caller, request };
    const denial = denialOf(name, request, client);
    if (denial !== undefined) {
      await this.#audit.denied(audited, denial.code);
      throw denial;
    }
    const work = async (): Promise<object | undefined> => {
      checkRequest(name, request);
      const context = { ...this.#context, log, client };
      return runRepeatable(this.#requests, context, client.name, name, request, options);
    };
    if (!CALLS[name].mutates) return await work();
    return await this.#audit.around(audited, work, (error) => failureOf(error, options.signal).code);
  }

  /** Whoever fails here may do nothing at all now. */
  async #enter(
    id: string,
    name: CallName,
    call: WireCall,
    identify: Identify,
  ): Promise<{ readonly caller: Caller; readonly client: Client; readonly slot: Disposable }> {
    try {
      const caller = identify(call);
      const client = requireClient(caller);
      return { caller, client, slot: this.#slots.take(caller) };
    } catch (error) {
      const failure = failureOf(error);
      await this.#audit.refused({ call: id, method: name, code: failure.code, ...failure.facts });
      throw failure;
    }
  }
}

/** One call on its way through the server. */
interface Incoming {
  readonly id: string;
  readonly name: CallName;
  readonly call: WireCall;
  readonly identify: Identify;
  readonly options: CallOptions & { readonly signal: AbortSignal };
  readonly log: Logger;
}

async function within(ms: number, done: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  await Promise.race([done, new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)))]);
  clearTimeout(timer);
}
