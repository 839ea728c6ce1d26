import { randomUUID } from "node:crypto";
import { connect } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";
import type { ClientReadableStream, ServiceError } from "@grpc/grpc-js";
import type { PackageDefinition } from "@grpc/proto-loader";
import { errnoOf, FleeceError } from "../shared/errors.js";
import type { Api, CallName, CallOptions, CallRequest, CallResult } from "./call-types.js";
import type { WireMethod } from "./loader.js";
import { loadPackage, methodOf } from "./loader.js";
import type { BackupProgress, ServedBackup } from "./messages.js";
import { fromStatus } from "./status.js";

/** Any message of a stream: see the responses of `Backups`. */
interface StreamMessage {
  readonly progress?: BackupProgress | null;
  readonly served?: ServedBackup | null;
  readonly result?: object | null;
}

/** Fails with AGENT_UNREACHABLE when nobody answers on the socket. */
export async function connectApi(socketPath: string): Promise<ApiClient> {
  await checkListening(socketPath);
  return new ApiClient(socketPath);
}

/** How long an agent that went away may take to come back: it puts in order what it had under way first. */
const RETURN_MS = 10_000;
const RETURN_PAUSE_MS = 100;

/**
 * The API of an agent, over its Unix socket. A call that is cancelled is undone by the agent afterwards. When the agent goes
 * away before it answers, the call is sent once more to its successor; an id makes that the same request.
 */
export class ApiClient implements Api, Disposable {
  readonly #socketPath: string;
  #client: Client;
  readonly #definitions: PackageDefinition = loadPackage();

  constructor(socketPath: string) {
    this.#socketPath = socketPath;
    this.#client = openClient(socketPath);
  }

  async call<Name extends CallName>(
    name: Name,
    request: CallRequest<Name>,
    options: CallOptions = {},
  ): Promise<CallResult<Name>> {
    const { signal } = options;
    signal?.throwIfAborted();
    const method = methodOf(this.#definitions, name);
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
      this.#client = openClient(this.#socketPath);
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
      const answers = await checkListening(this.#socketPath).then(
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
        facts: { socket: this.#socketPath },
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

function openClient(socketPath: string): Client {
  return new Client(`unix:${socketPath}`, credentials.createInsecure(), {
    "grpc.max_receive_message_length": -1,
    "grpc.enable_http_proxy": 0,
  });
}

/** As gRPC itself has it, not the agent. */
function isDisconnected(error: ServiceError): boolean {
  return error.code === status.UNAVAILABLE && fromStatus(error) === undefined;
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
