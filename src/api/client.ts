import { randomUUID } from "node:crypto";
import { connect, isIP } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { checkServerIdentity, connect as connectTls, type PeerCertificate } from "node:tls";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";
import type { ClientReadableStream, ServiceError } from "@grpc/grpc-js";
import { formatHostPort, type HostPort } from "../model/host-port.js";
import { type ErrorFacts, errnoOf, errorMessage, FleeceError } from "../shared/errors.js";
import type { Api, CallName, CallOptions, CallRequest, CallResult } from "./call-types.js";
import type { WireMethod } from "./loader.js";
import { loadServiceOf, methodOf } from "./loader.js";
import type { Progress, ServedBackup } from "./messages.js";
import { fromStatus } from "./status.js";

/** Any message of a stream: see the responses of `Backups`. */
interface StreamMessage {
  readonly progress?: Progress | null;
  readonly served?: ServedBackup | null;
  readonly result?: object | null;
}

/** Of an agent on another host. In PEM: what the client shows, and the authority that signs the agent's certificate. */
export interface RemoteAgent extends HostPort {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly ca: Buffer;
}

/** The path of the agent's Unix socket, or an address with what TLS needs. Fails with AGENT_UNREACHABLE. */
export async function connectApi(agent: string | RemoteAgent): Promise<ApiClient> {
  await checkReachable(agent);
  return new ApiClient(agent);
}

/** How long an agent that went away may take to come back: it puts in order what it had under way first. */
const RETURN_MS = 10_000;
const RETURN_PAUSE_MS = 100;

/**
 * The API of an agent. A call that is cancelled is undone by the agent afterwards. When the agent goes away before it
 * answers, the call is sent once more to its successor; an id makes that the same request.
 */
export class ApiClient implements Api, Disposable {
  readonly #agent: string | RemoteAgent;
  #client: Client;

  constructor(agent: string | RemoteAgent) {
    this.#agent = agent;
    this.#client = openClient(agent);
  }

  async call<Name extends CallName>(
    name: Name,
    request: CallRequest<Name>,
    options: CallOptions = {},
  ): Promise<CallResult<Name>> {
    const { signal } = options;
    signal?.throwIfAborted();
    const method = methodOf(loadServiceOf(name), name);
    const named = hasRequestId(method)
      ? { requestId: randomUUID(), ...(request as object) }
      : (request as object);
    try {
      // The method decides what it decodes.
      return (await this.#send(name, method, named, options)) as CallResult<Name>;
    } catch (error) {
      // So ends a call that would have lasted for ever.
      if (signal?.aborted === true && name === "Backups.Serve") return undefined as CallResult<Name>;
      signal?.throwIfAborted();
      throw this.#failure(error as ServiceError);
    }
  }

  /** Twice, if the connection was lost in between. What was served had an address of its own, which would be another one. */
  async #send(
    name: CallName,
    method: WireMethod,
    request: object,
    options: CallOptions,
  ): Promise<object | undefined> {
    try {
      return await this.#sendOnce(method, request, options);
    } catch (error) {
      const isLost = isDisconnected(error as ServiceError) && name !== "Backups.Serve";
      if (!isLost || !(await this.#hasReturned(options.signal))) throw error;
      this.#client.close();
      this.#client = openClient(this.#agent);
      return this.#sendOnce(method, request, options);
    }
  }

  #sendOnce(method: WireMethod, request: object, options: CallOptions): Promise<object | undefined> {
    return method.responseStream
      ? this.#stream(method, request, options)
      : this.#unary(method, request, options.signal);
  }

  async #hasReturned(signal: AbortSignal | undefined): Promise<boolean> {
    const deadlineMs = performance.now() + RETURN_MS;
    while (signal?.aborted !== true && performance.now() < deadlineMs) {
      const answers = await checkReachable(this.#agent).then(
        () => true,
        () => false,
      );
      if (answers) return true;
      await delay(RETURN_PAUSE_MS);
    }
    return false;
  }

  #unary(method: WireMethod, request: object, signal: AbortSignal | undefined): Promise<object | undefined> {
    const { path, requestSerialize, responseDeserialize } = method;
    return new Promise((resolve, reject) => {
      const call = this.#client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        new Metadata(),
        (error, message) => (error === null ? resolve(message) : reject(error)),
      );
      cancelWith(signal, call);
    });
  }

  #stream(
    { path, requestSerialize, responseDeserialize }: WireMethod,
    request: object,
    { signal, onProgress, onServed }: CallOptions,
  ): Promise<object | undefined> {
    return new Promise((resolve, reject) => {
      const call: ClientReadableStream<StreamMessage> = this.#client.makeServerStreamRequest(
        path,
        requestSerialize,
        responseDeserialize,
        request,
      );
      let last: object | undefined;
      call.on("data", ({ progress, served, result }: StreamMessage) => {
        if (progress) onProgress?.(progress);
        if (served) onServed?.(served);
        if (result) last = result;
      });
      call.on("end", () => resolve(last));
      call.on("error", reject);
      cancelWith(signal, call);
    });
  }

  #failure(error: ServiceError): FleeceError {
    const sent = fromStatus(error);
    if (sent !== undefined) return sent;
    const { code, details } = error;
    if (isDisconnected(error)) {
      const advice =
        "what it had under way is undone when it is started again, what was done stays; look before you repeat the command";
      return new FleeceError("AGENT_UNREACHABLE", `The agent went away before it answered; ${advice}`, {
        cause: error,
        facts: whereIs(this.#agent),
      });
    }
    if (code === status.UNIMPLEMENTED) {
      return new FleeceError("UNSUPPORTED", "The agent is of another version and does not know this call", {
        cause: error,
      });
    }
    return new FleeceError("INTERNAL", `The call failed: ${details}`, { cause: error });
  }

  [Symbol.dispose](): void {
    this.#client.close();
  }
}

function openClient(agent: string | RemoteAgent): Client {
  const options = { "grpc.max_receive_message_length": -1, "grpc.enable_http_proxy": 0 };
  if (typeof agent === "string") return new Client(`unix:${agent}`, credentials.createInsecure(), options);
  const { ca, key, cert, host } = agent;
  // TLS has no room for an address as the server's name, and Node warns of it: another name is sent, the address checked.
  const identity = {
    checkServerIdentity: (_: string, certificate: PeerCertificate) => checkServerIdentity(host, certificate),
  };
  return new Client(`dns:${formatHostPort(agent)}`, credentials.createSsl(ca, key, cert, identity), {
    ...options,
    // A server that is gone without a word is noticed.
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    ...(isIP(host) === 0 ? {} : { "grpc.ssl_target_name_override": "agent" }),
  });
}

async function checkReachable(agent: string | RemoteAgent): Promise<void> {
  await (typeof agent === "string" ? checkListening(agent) : checkHandshake(agent));
}

function whereIs(agent: string | RemoteAgent): ErrorFacts {
  return typeof agent === "string" ? { socket: agent } : { address: formatHostPort(agent) };
}

/**
 * As gRPC itself has it, not the agent: its errors carry their code. A process that ends may close its streams before the
 * connection; that is INTERNAL to grpc-js, and only its words tell.
 */
function isDisconnected(error: ServiceError): boolean {
  if (fromStatus(error) !== undefined) return false;
  return error.code === status.UNAVAILABLE || error.details.startsWith("Received RST_STREAM");
}

function hasRequestId({ requestType }: WireMethod): boolean {
  const { field } = requestType.type as { readonly field?: readonly { readonly name: string }[] };
  return field?.some(({ name }) => name === "request_id") === true;
}

function cancelWith(signal: AbortSignal | undefined, call: { cancel(): void }): void {
  signal?.addEventListener("abort", () => call.cancel(), { once: true });
}

/** gRPC itself does not tell why it could not connect. */
function checkListening(socketPath: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath);
    socket.once("connect", () => {
      socket.destroy();
      resolve();
    });
    socket.once("error", (cause) => {
      const why =
        errnoOf(cause) === "EACCES"
          ? `This user may not connect to ${socketPath}`
          : `No agent answers on ${socketPath}`;
      const advice = "start one with `fleece serve`, or add --embedded to run the command without one";
      reject(
        new FleeceError("AGENT_UNREACHABLE", `${why}; ${advice}`, { cause, facts: { socket: socketPath } }),
      );
    });
  });
}

const HANDSHAKE_MS = 15_000;

/**
 * With TLS 1.3 a client is through before the agent has looked at its certificate, so this waits for the first bytes that
 * the agent sends: those of HTTP/2.
 */
function checkHandshake({ host, port, ca, cert, key }: RemoteAgent): Promise<void> {
  const address = formatHostPort({ host, port });
  return new Promise((resolve, reject) => {
    const servername = isIP(host) === 0 ? { servername: host } : {};
    const socket = connectTls({ host, port, ca, cert, key, ...servername, ALPNProtocols: ["h2"] });
    let secured = false;
    const fail = (why: string, cause?: unknown): void => {
      socket.destroy();
      const message = `Cannot talk to the agent on ${address}: ${why}`;
      reject(new FleeceError("AGENT_UNREACHABLE", message, { cause, facts: { address } }));
    };
    socket.setTimeout(HANDSHAKE_MS, () => fail(`it did not answer within ${HANDSHAKE_MS / 1000} s`));
    socket.once("secureConnect", () => (secured = true));
    socket.once("data", () => {
      socket.destroy();
      resolve();
    });
    const refusal =
      "it closed the connection, as it does with a certificate that it does not accept; its log says why";
    socket.once("error", (error) =>
      fail(secured ? `${refusal} (${errorMessage(error)})` : errorMessage(error), error),
    );
    socket.once("close", () => fail(refusal));
  });
}
