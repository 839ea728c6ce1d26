import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { connectApi, type ApiClient } from "../../src/api/client.js";
import { ApiServer, type ServerParts } from "../../src/api/server.js";
import { openRequests } from "../../src/api/repeatable.js";
import { AuditFile } from "../../src/drivers/audit-file.js";
import type { Credentials } from "./authority.js";
import { FakeWorld } from "./fake-agent.js";
import type { Gate } from "./fake-domain.js";
import { temporaryDirectory, untilTestEnds } from "./lifetime.js";

export type AuditLine = Readonly<Record<string, unknown>>;

export interface ServedOptions extends Partial<
  Pick<ServerParts, "clients" | "socketRole" | "limits" | "audit">
> {
  readonly gate?: Gate;
  /** The time by which certificates are judged once they are connected; default: real time. */
  readonly now?: () => number;
  /** Default: that of the domain, which moves with each look at it. */
  readonly monotonicMs?: () => number;
  /** The agent's certificate and the authority of its clients; left out: no TCP address. */
  readonly tls?: Credentials["content"];
}

/** The API of a domain `vm` in memory, on a Unix socket and by TLS, for as long as the test runs. */
export async function serveApi(options: ServedOptions = {}) {
  const { gate = () => undefined, now = () => Date.now(), monotonicMs, tls, ...parts } = options;
  const { path } = await temporaryDirectory();
  const world = new FakeWorld(path, { disks: [{ target: "vda", sizeBytes: 1024 * 1024 }] });
  const { context } = world.process(gate);
  const clock = { ...context.clock, now, ...(monotonicMs === undefined ? {} : { monotonicMs }) };
  const auditPath = join(path, "audit.log");
  const server = new ApiServer({
    context: { ...context, clock },
    requests: await openRequests({ ...context, clock }),
    log: { ...context.log, child: () => context.log },
    audit: new AuditFile(auditPath, context.clock),
    ...parts,
  });
  const socket = join(path, "agent.sock");
  await server.listen(socket);
  const address = tls === undefined ? undefined : await server.listenTls({ host: "127.0.0.1", port: 0 }, tls);
  untilTestEnds({ [Symbol.asyncDispose]: () => server.close(0) });
  const kept = async (connecting: Promise<ApiClient>): Promise<ApiClient> => {
    const api = await connecting;
    untilTestEnds({
      [Symbol.asyncDispose]: () => {
        api[Symbol.dispose]();
        return Promise.resolve();
      },
    });
    return api;
  };
  return {
    world,
    server,
    socket,
    auditPath,
    port: address?.port ?? 0,
    /** A client of the Unix socket. */
    local: () => kept(connectApi(socket)),
    /** A client by TLS. */
    remote: ({ content }: Pick<Credentials, "content">) => {
      if (address === undefined) throw new Error("This API has no TCP address");
      return kept(connectApi({ ...address, ...content }));
    },
    audit: async (): Promise<readonly AuditLine[]> => {
      const text = await readFile(auditPath, "utf8").catch(() => "");
      return text
        .split("\n")
        .filter((line) => line !== "")
        .map((line) => JSON.parse(line) as AuditLine);
    },
  };
}
