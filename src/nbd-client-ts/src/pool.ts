import { connectNbd } from "./connect.js";
import type { NbdConnection } from "./connection.js";
import { LIMIT } from "./constants.js";
import { NbdError } from "./errors.js";
import { LANES, type Lane } from "./lane.js";
import { NbdExport } from "./nbd-export.js";
import type { BesideUri, NbdPoolOptions } from "./options.js";
import { resolveTarget } from "./target.js";

const DEFAULT_CONNECTIONS = 4;
/** A server with a limit may accept a connection and never greet it: that must not cost the whole patience. */
const FURTHER_CONNECT_TIMEOUT_MS = 5000;

/**
 * An export over several connections. Every request, also every piece of a large call, takes the least busy one. They
 * live and die together: the first error of one ends all.
 */
export class NbdPool extends NbdExport {
  readonly connections: number;
  /** Why there are fewer connections than were asked for: `NOT_SUPPORTED` if the server forbids more than one. */
  readonly shortfall: NbdError | undefined;

  /** Use `connectNbdPool`. */
  constructor(exportName: string, lanes: readonly [Lane, ...Lane[]], shortfall: NbdError | undefined) {
    super(exportName, lanes);
    this.connections = lanes.length;
    this.shortfall = shortfall;
  }
}

/**
 * Connects to one export several times where the server says that this is safe (CAN_MULTI_CONN), else once. Rejects as
 * `connectNbd` does, and with `CONNECTIONS_DIFFER` if the server does not show the same export each time.
 */
export async function connectNbdPool(
  target: string | NbdPoolOptions,
  besideUri: BesideUri<NbdPoolOptions> = {},
): Promise<NbdPool> {
  const options = resolveTarget(target, besideUri);
  const { connections: wanted = DEFAULT_CONNECTIONS, ...connectOptions } = options;
  if (!Number.isInteger(wanted) || wanted < 1 || wanted > LIMIT.connections) {
    throw new NbdError(
      "INVALID_ARGUMENT",
      `Expected between 1 and ${LIMIT.connections} connections, got ${wanted}`,
    );
  }
  const first = await connectNbd(connectOptions);
  if (wanted === 1) return new NbdPool(first.exportName, first[LANES], undefined);
  if (!first.canMultiConn) return new NbdPool(first.exportName, first[LANES], notAllowed(wanted));
  const { connectTimeoutMs = FURTHER_CONNECT_TIMEOUT_MS } = options;
  const further = {
    ...connectOptions,
    connectTimeoutMs: Math.min(connectTimeoutMs, FURTHER_CONNECT_TIMEOUT_MS),
  };
  const attempts = await Promise.allSettled(Array.from({ length: wanted - 1 }, () => connectNbd(further)));
  return assemble(first, attempts);
}

function assemble(first: NbdConnection, attempts: readonly PromiseSettledResult<NbdConnection>[]): NbdPool {
  const others = attempts.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
  const failures = attempts.flatMap((each) => (each.status === "rejected" ? [each.reason as unknown] : []));
  const [failure] = failures;
  const shortfall = failure instanceof NbdError && failure.code !== "ABORTED" ? failure : undefined;
  const fatal = others.map((other) => difference(first, other)).find((each) => each !== undefined);
  if (fatal !== undefined || failure !== shortfall) {
    for (const each of [first, ...others]) each.destroy();
    throw fatal ?? failure;
  }
  const [lane] = first[LANES];
  return new NbdPool(first.exportName, [lane, ...others.flatMap((each) => each[LANES])], shortfall);
}

/** The ids of contexts may differ from one connection to the next, nothing else may. */
function difference(a: NbdConnection, b: NbdConnection): NbdError | undefined {
  const [x, y] = [facts(a), facts(b)];
  if (x === y) return undefined;
  return new NbdError(
    "CONNECTIONS_DIFFER",
    `Expected the same export on every connection, the server described it as ${x} and as ${y}`,
  );
}

function facts({ [LANES]: [lane] }: NbdConnection): string {
  const { sizeBytes, transmissionFlags, blockSize, contexts } = lane.negotiated;
  return JSON.stringify({ sizeBytes, transmissionFlags, blockSize, contexts: [...contexts.values()].sort() });
}

function notAllowed(wanted: number): NbdError {
  return new NbdError(
    "NOT_SUPPORTED",
    `Expected to use ${wanted} connections, the server does not declare more than one safe`,
  );
}
