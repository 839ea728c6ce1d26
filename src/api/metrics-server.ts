import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { MetricsAddress } from "../model/metrics-address.js";
import type { Logger } from "../ports/logger.js";
import { errnoOf, errorMessage, FleeceError } from "../shared/errors.js";
import type { AgentMetrics } from "./metrics.js";

/** A scraper sends a line and some headers. */
const REQUEST_MS = 10_000;
const MAX_CONNECTIONS = 32;

export interface MetricsServer extends AsyncDisposable {
  /** The port that was given for port 0; else that of the address. */
  readonly port: number | undefined;
}

/** Answers `GET /metrics` and nothing else. Fails with ALREADY_EXISTS or PERMISSION_DENIED if the address cannot be had. */
export async function serveMetrics(
  metrics: AgentMetrics,
  address: MetricsAddress,
  log: Logger,
): Promise<MetricsServer> {
  const server = createServer(
    { requestTimeout: REQUEST_MS, headersTimeout: REQUEST_MS },
    (request, response) => {
      void answer(metrics, request, response).catch((error: unknown) => {
        log.warn({ err: error }, "Cannot answer with metrics");
        response.destroy();
      });
    },
  );
  server.maxConnections = MAX_CONNECTIONS;
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(listenError(error, address)));
    // A socket is made at once, with mode 0600.
    const before = process.umask(0o177);
    try {
      server.listen("path" in address ? { path: address.path } : address, resolve);
    } finally {
      process.umask(before);
    }
  });
  const bound = server.address();
  return {
    port: typeof bound === "object" ? bound?.port : undefined,
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answer(
  metrics: AgentMetrics,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  request.resume();
  const isKnown = request.url?.split("?")[0] === "/metrics";
  if (!isKnown || (request.method !== "GET" && request.method !== "HEAD")) {
    response.writeHead(isKnown ? 405 : 404, isKnown ? { Allow: "GET, HEAD" } : {}).end();
    return;
  }
  const text = await metrics.text();
  response.writeHead(200, { "Content-Type": metrics.contentType, "Cache-Control": "no-store" }).end(text);
}

function listenError(error: Error, address: MetricsAddress): FleeceError {
  const place = "path" in address ? address.path : `${address.host}:${address.port}`;
  const code = ["EACCES", "EPERM", "EROFS"].includes(errnoOf(error) ?? "")
    ? "PERMISSION_DENIED"
    : "ALREADY_EXISTS";
  return new FleeceError(code, `Cannot serve metrics on ${place}: ${errorMessage(error)}`, { cause: error });
}
