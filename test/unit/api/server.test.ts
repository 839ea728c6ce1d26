import { mkdir, stat } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { Client, credentials, Metadata, status, type ServiceError } from "@grpc/grpc-js";
import { loadSync, type ServiceDefinition } from "@grpc/proto-loader";
import { service as health } from "grpc-health-check";
import { describe, expect, it } from "vitest";
import { connectApi } from "../../../src/api/client.js";
import { protoRoot } from "../../../src/api/proto.js";
import { openRequests } from "../../../src/api/repeatable.js";
import { ApiServer } from "../../../src/api/server.js";
import { fromStatus } from "../../../src/api/status.js";
import { AuditFile } from "../../../src/drivers/audit-file.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { FakeWorld } from "../../support/fake-agent.js";
import type { Gate } from "../../support/fake-domain.js";
import { FIRST_PAGE } from "../../support/first-page.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";

const RUN = { domain: "vm", level: "LEVEL_UNSPECIFIED", disks: [] } as const;
const GRACE_MS = 60_000;

/** A server over the real services and a domain in memory, and a client of it. */
async function served(gate: Gate = () => undefined) {
  const { path } = await temporaryDirectory();
  const world = new FakeWorld(path, { disks: [{ target: "vda", sizeBytes: 1024 * 1024 }] });
  const { context } = world.process(gate);
  const log = { ...context.log, child: () => context.log };
  const server = new ApiServer({
    context,
    requests: await openRequests(context),
    log,
    audit: new AuditFile(join(path, "audit.log"), context.clock),
  });
  const socket = join(path, "agent.sock");
  await server.listen(socket);
  untilTestEnds({ [Symbol.asyncDispose]: () => server.close(0) });
  const api = await connectApi(socket);
  const raw = new Client(`unix:${socket}`, credentials.createInsecure());
  untilTestEnds({
    [Symbol.asyncDispose]: () => {
      api[Symbol.dispose]();
      raw.close();
      return Promise.resolve();
    },
  });
  return { world, server, socket, api, raw };
}

/** A place in the work where a call is held until the test lets it go on. */
function barrier(point: string) {
  let reach: () => void = () => undefined;
  let open: () => void = () => undefined;
  const reached = new Promise<void>((resolve) => (reach = resolve));
  const opened = new Promise<void>((resolve) => (open = resolve));
  const gate: Gate = async (at) => {
    if (at !== point) return;
    reach();
    await opened;
  };
  return { gate, reached, open };
}

const AT_FREEZE = "add access: after";

/** Sends the bytes of a request as they are, and gives the error. */
function sendRaw(
  raw: Client,
  method: string,
  request: Uint8Array,
  options: { readonly deadline?: number } = {},
): Promise<ServiceError> {
  return new Promise((resolve, reject) => {
    const call = raw.makeServerStreamRequest(
      `/fleece.v1.${method}`,
      (value: Uint8Array) => Buffer.from(value),
      (bytes: Buffer) => bytes,
      request,
      new Metadata(),
      options,
    );
    call.on("data", () => undefined);
    call.on("error", (error) => resolve(error as ServiceError));
    call.on("end", () => reject(new Error("The call succeeded")));
  });
}

function encode(type: string, message: object): Uint8Array {
  const definition = protoRoot().lookupType(`fleece.v1.${type}`);
  return definition.encode(definition.create(message)).finish();
}

describe("ApiServer", () => {
  it("answers on a socket that is its user's alone, and removes it in the end", async () => {
    const { server, socket } = await served();
    expect((await stat(socket)).mode & 0o777).toBe(0o600);
    // The process makes its other files and directories as before.
    const directory = `${socket}.d`;
    await mkdir(directory);
    expect((await stat(directory)).mode & 0o700).toBe(0o700);
    await server.close(GRACE_MS);
    await expect(stat(socket)).rejects.toMatchObject({ code: "ENOENT" });
    await expect(connectApi(socket)).rejects.toMatchObject({ code: "AGENT_UNREACHABLE" });
  });

  it("streams progress, and the result as the last message", async () => {
    const { api } = await served();
    const steps: string[] = [];
    const backup = await api.call("Backups.Run", RUN, {
      onProgress: (progress) => steps.push(...Object.keys(progress)),
    });
    expect(backup).toMatchObject({ level: "FULL", domain: "vm", disks: [{ sizeBytes: 1024 * 1024 }] });
    expect(steps[0]).toBe("started");
    expect(steps).toContain("disk");
    expect(await api.call("Backups.Get", { id: backup.id })).toEqual(JSON.parse(JSON.stringify(backup)));
  });

  it("gives errors back as they were", async () => {
    const { api } = await served();
    await expect(api.call("Backups.Get", { id: "b1" })).rejects.toEqual(
      new FleeceError("BACKUP_NOT_FOUND", "No repository of the configuration holds a backup b1", {
        facts: { backup: "b1" },
      }),
    );
    await expect(api.call("Domains.Get", { domain: "x y" })).rejects.toMatchObject({ code: "INVALID_NAME" });
  });

  it.each([
    [
      "an enum number without a name",
      "Backups/Run",
      "RunBackupRequest",
      { domain: "vm", level: 99 },
      "level",
    ],
    [
      "a negative size",
      "BlockSnapshots/Create",
      "CreateBlockSnapshotRequest",
      { domain: "vm", leaseMs: -5 },
      "leaseMs",
    ],
    [
      "a number that is not safe",
      "BlockSnapshots/Renew",
      "RenewBlockSnapshotRequest",
      { leaseMs: 2 ** 60 },
      "leaseMs",
    ],
    ["an empty name", "Backups/Run", "RunBackupRequest", {}, "domain"],
    ["a negative page size", "Backups/List", "ListBackupsRequest", { pageSize: -1 }, "pageSize"],
    [
      "a page token of somebody else",
      "Backups/List",
      "ListBackupsRequest",
      { pageToken: "eyJ9" },
      "pageToken",
    ],
    ["a relative path", "Backups/Restore", "RestoreBackupRequest", { id: "b1", directory: "x" }, "directory"],
    [
      "a format that no restore writes",
      "Backups/Restore",
      "RestoreBackupRequest",
      { id: "b1", directory: "/x", format: 3 },
      "format",
    ],
  ])("refuses %s and names the field", async (_, method, type, request, field) => {
    const { raw } = await served();
    const error = await sendRaw(raw, method, encode(type, request));
    expect(error.code).toBe(status.INVALID_ARGUMENT);
    expect(fromStatus(error)?.code).toMatch(/^INVALID_(ARGUMENT|NAME)$/);
    expect(fromStatus(error)?.facts).toMatchObject({ field });
  });

  it("undoes the work of a call that its client cancels", async () => {
    const { gate, reached, open } = barrier(AT_FREEZE);
    const { api, server, world } = await served(gate);
    const before = await world.traces();
    const controller = new AbortController();
    const call = api.call("Backups.Run", RUN, { signal: controller.signal });
    await reached;
    const reason = new FleeceError("INTERRUPTED", "Interrupted by SIGINT");
    controller.abort(reason);
    await expect(call).rejects.toBe(reason);
    open();
    await server.close(GRACE_MS);
    expect(await world.traces()).toEqual(before);
    expect(await world.repository.list()).toEqual([]);
    expect(world.log).toContain("Call failed: The client cancelled the call, or its deadline passed");
  });

  it("undoes the work of a call whose deadline passes", async () => {
    const { gate, reached, open } = barrier(AT_FREEZE);
    const { raw, server, world } = await served(gate);
    const before = await world.traces();
    const request = encode("RunBackupRequest", { domain: "vm" });
    const failed = sendRaw(raw, "Backups/Run", request, { deadline: Date.now() + 2000 });
    await reached;
    expect((await failed).code).toBe(status.DEADLINE_EXCEEDED);
    open();
    await server.close(GRACE_MS);
    expect(await world.traces()).toEqual(before);
    expect(await world.repository.list()).toEqual([]);
  });

  it("lets calls end when it ends itself, and takes no more", async () => {
    const { gate, reached, open } = barrier(AT_FREEZE);
    const { api, server } = await served(gate);
    const call = api.call("Backups.Run", RUN);
    await reached;
    const closed = server.close(GRACE_MS);
    await expect(api.call("Domains.List", FIRST_PAGE)).rejects.toMatchObject({ code: "AGENT_UNREACHABLE" });
    open();
    expect(await call).toMatchObject({ level: "FULL" });
    await closed;
  });

  it("cancels calls that outlast the grace period, and undoes their work before it ends", async () => {
    const { gate, reached, open } = barrier(AT_FREEZE);
    const { api, server, world } = await served(gate);
    const before = await world.traces();
    const call = api.call("Backups.Run", RUN);
    await reached;
    const closed = server.close(1);
    setTimeout(open, 100);
    await expect(call).rejects.toMatchObject({
      code: "INTERRUPTED",
      message: "The agent ends, and the call was cancelled",
    });
    await closed;
    expect(await world.traces()).toEqual(before);
    expect(await world.repository.list()).toEqual([]);
  });

  it("says by the health protocol that each service serves", async () => {
    const { raw } = await served();
    const { path, requestSerialize, responseDeserialize } = health["Check"] as ServiceDefinition[string];
    for (const service of ["", "fleece.v1.Backups", "fleece.v1.Domains"]) {
      const answer = await new Promise((resolve, reject) => {
        raw.makeUnaryRequest(path, requestSerialize, responseDeserialize, { service }, (error, message) =>
          error === null ? resolve(message) : reject(error),
        );
      });
      expect(answer).toEqual({ status: "SERVING" });
    }
  });

  it("tells by reflection which services it has, and their methods", async () => {
    const { raw } = await served();
    const folder = dirname(createRequire(import.meta.url).resolve("@grpc/reflection/package.json"));
    const definitions = loadSync(join(folder, "build/proto/grpc/reflection/v1/reflection.proto"));
    const reflection = definitions["grpc.reflection.v1.ServerReflection"] as ServiceDefinition;
    const { path, requestSerialize, responseDeserialize } = reflection[
      "ServerReflectionInfo"
    ] as ServiceDefinition[string];
    const call = raw.makeBidiStreamRequest(path, requestSerialize, responseDeserialize);
    const answers: unknown[] = [];
    const ended = new Promise((resolve, reject) => {
      call.on("data", (message) => answers.push(message));
      call.on("end", resolve);
      call.on("error", reject);
    });
    call.write({ listServices: "" });
    call.write({ fileContainingSymbol: "fleece.v1.Backups" });
    call.end();
    await ended;
    const [list, file] = answers as [
      { listServicesResponse: { service: { name: string }[] } },
      { fileDescriptorResponse: { fileDescriptorProto: Buffer[] } },
    ];
    const names = list.listServicesResponse.service.map(({ name }) => name);
    expect(names).toEqual(expect.arrayContaining(["fleece.v1.Backups", "fleece.v1.Domains"]));
    const bytes = Buffer.concat(file.fileDescriptorResponse.fileDescriptorProto).toString("latin1");
    expect(bytes).toContain("VerifyBackupRequest");
  });
});
