import { Client, credentials, Metadata, status, type ServiceError } from "@grpc/grpc-js";
import fc from "fast-check";
import protobuf from "protobufjs";
import { describe, expect, it } from "vitest";
import type { CallName } from "../../../src/api/call-types.js";
import { CALLS } from "../../../src/api/calls.js";
import { protoRoot } from "../../../src/api/proto.js";
import { FIRST_PAGE } from "../../support/first-page.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { serveApi } from "../../support/served-api.js";

const NAMES = Object.keys(CALLS) as CallName[];
const { Writer } = protobuf;

/** An agent, and a way to send it any bytes as a request. Resolves to the status code. */
async function target() {
  const served = await serveApi();
  const api = await served.local();
  const raw = new Client(`unix:${served.socket}`, credentials.createInsecure());
  untilTestEnds({
    [Symbol.asyncDispose]: () => {
      raw.close();
      return Promise.resolve();
    },
  });
  const send = (name: CallName, bytes: Uint8Array): Promise<number> =>
    new Promise((resolve) => {
      const call = raw.makeServerStreamRequest(
        `/fleece.v1.${name.replace(".", "/")}`,
        (value: Uint8Array) => Buffer.from(value),
        (answer: Buffer) => answer,
        bytes,
        new Metadata(),
        { deadline: Date.now() + 20_000 },
      );
      call.on("data", () => undefined);
      call.on("error", (error: ServiceError) => resolve(error.code));
      call.on("end", () => resolve(status.OK));
    });
  /** Nothing that a client sends is a defect of the agent, which goes on. */
  const survives = async (name: CallName, bytes: Uint8Array): Promise<number> => {
    const code = await send(name, bytes);
    expect([status.INTERNAL, status.UNKNOWN, status.UNAVAILABLE, status.DEADLINE_EXCEEDED]).not.toContain(
      code,
    );
    expect(await api.call("Domains.List", FIRST_PAGE)).toMatchObject({ domains: [{ name: "vm" }] });
    return code;
  };
  return { survives };
}

function requestType(name: CallName): protobuf.Type {
  const [service = "", method = ""] = name.split(".");
  const type = protoRoot().lookupService(`fleece.v1.${service}`).methods[method]?.resolvedRequestType;
  if (!type) throw new Error(`${name} has no request`);
  return type;
}

const hostileText = fc.oneof(
  fc.constantFrom(
    "vm",
    "vda",
    "",
    "../../etc/passwd",
    "a\0b",
    "/",
    "a,b",
    "\ufeffvm",
    "__proto__",
    "constructor",
  ),
  fc.string({ unit: "binary", maxLength: 300 }),
  fc.string({ unit: "binary", maxLength: 300 }).map((text) => `${text}\u{1f600}`.repeat(40)),
  fc.constantFrom(4096, 5000, 100_000).map((length) => "x".repeat(length)),
  // Page tokens: ours are JSON in base64url.
  fc.json({ maxDepth: 3 }).map((json) => Buffer.from(json).toString("base64url")),
  fc
    .constantFrom(
      '[["backups",null,null],[{}]]',
      '[["snapshots","vm"],[1e999,"s"]]',
      '[["snapshots","vm"],[]]',
      "[".repeat(3000),
    )
    .map((json) => Buffer.from(json).toString("base64url")),
);

const bytesOfText = fc.oneof(
  hostileText.map((text) => Buffer.from(text)),
  // Not UTF-8: halves of surrogate pairs, overlong forms, what ends too early.
  fc
    .constantFrom([0xed, 0xa0, 0x80], [0xc0, 0x80], [0xf0, 0x9f, 0x98], [0xff])
    .map((bytes) => Buffer.from(bytes)),
  fc.uint8Array({ maxLength: 64 }).map((bytes) => Buffer.from(bytes)),
);

/** A field of the request, or of no request, of any wire type. */
const field = fc.record({
  id: fc.oneof(fc.integer({ min: 1, max: 16 }), fc.constantFrom(0, 19_000, 2 ** 29 - 1)),
  value: fc.oneof(
    fc.record({ type: fc.constant(2 as const), bytes: bytesOfText }),
    fc.record({ type: fc.constant(0 as const), number: fc.bigInt(0n, 2n ** 64n - 1n) }),
    fc.record({ type: fc.constant(1 as const), bytes: fc.uint8Array({ minLength: 8, maxLength: 8 }) }),
    fc.record({ type: fc.constant(5 as const), bytes: fc.uint8Array({ minLength: 4, maxLength: 4 }) }),
  ),
});

type Field = typeof field extends fc.Arbitrary<infer T> ? T : never;

function encodeFields(fields: readonly Field[]): Buffer {
  return Buffer.concat(
    fields.flatMap(({ id, value }) => {
      const tag = varint(BigInt(id) * 8n + BigInt(value.type));
      if (value.type === 0) return [tag, varint(value.number)];
      const length = value.type === 2 ? [varint(BigInt(value.bytes.length))] : [];
      return [tag, ...length, value.bytes];
    }),
  );
}

function varint(value: bigint): Buffer {
  const bytes: number[] = [];
  let rest = value;
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  return Buffer.from([...bytes, Number(rest)]);
}

describe("the API over the wire", () => {
  it("answers any bytes with an error of their sender", async () => {
    const { survives } = await target();
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...NAMES), fc.uint8Array({ maxLength: 200 }), async (name, bytes) => {
        await survives(name, bytes);
      }),
      { numRuns: 150 },
    );
  }, 120_000);

  it("answers requests of hostile fields, known and unknown, with an error of their sender", async () => {
    const { survives } = await target();
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...NAMES), fc.array(field, { maxLength: 8 }), async (name, fields) => {
        await survives(name, encodeFields(fields));
      }),
      { numRuns: 300 },
    );
  }, 120_000);

  it.each(NAMES)(
    "answers hostile texts in each field of %s",
    async (name) => {
      const { survives } = await target();
      const type = requestType(name);
      const texts = type.fieldsArray.filter((listed) => listed.type === "string");
      if (texts.length === 0) return;
      await fc.assert(
        fc.asyncProperty(fc.array(hostileText, { minLength: 4, maxLength: 4 }), async (values) => {
          const message = texts.map((listed, index) => {
            const value = values[index % values.length] ?? "";
            if (listed.map) return [listed.name, { [value]: value }];
            return [listed.name, listed.repeated ? [value, value] : value];
          });
          await survives(name, type.encode(type.fromObject(Object.fromEntries(message) as object)).finish());
        }),
        { numRuns: 15 },
      );
    },
    120_000,
  );

  it("does not drown in depth, in length, or in numbers", async () => {
    const { survives } = await target();
    const nested = Array.from({ length: 5000 }).reduce<Buffer>(
      (inner) =>
        Buffer.from(
          Writer.create()
            .uint32((4 << 3) | 2)
            .bytes(inner)
            .finish(),
        ),
      Buffer.alloc(0),
    );
    const domain = Buffer.from(
      Writer.create()
        .uint32((1 << 3) | 2)
        .string("vm")
        .finish(),
    );
    const disk = Buffer.from(
      Writer.create()
        .uint32((3 << 3) | 2)
        .string("vda")
        .finish(),
    );
    const leases = [2 ** 53, 2 ** 63, 2 ** 64 - 2048].map((value) =>
      Buffer.from(
        Writer.create()
          .uint32(5 << 3)
          .uint64(value)
          .finish(),
      ),
    );
    const hostile = [
      // Groups in groups, which nobody has sent for years.
      Buffer.alloc(500_000, (15 << 3) | 3),
      nested,
      Buffer.concat([domain, ...Array.from({ length: 100_000 }, () => disk)]),
      ...leases.map((lease) => Buffer.concat([domain, lease])),
    ];
    // Fields of a later version are skipped, however many there are.
    expect(await survives("Domains.Get", Buffer.concat([domain, Buffer.alloc(900_000, 0x78)]))).toBe(
      status.OK,
    );
    for (const bytes of hostile) {
      expect(await survives("BlockSnapshots.Create", bytes)).toBe(status.INVALID_ARGUMENT);
    }
  });

  it("puts half a character that an error message was cut in into words", async () => {
    const { survives } = await target();
    const type = requestType("Backups.Restore");
    // The message is cut in the middle of one of these, whatever is before them.
    for (const start of ["x", "xx"]) {
      const request = { id: "b1", directory: start + "\u{1f600}".repeat(1500) };
      expect(await survives("Backups.Restore", type.encode(type.fromObject(request)).finish())).toBe(
        status.INVALID_ARGUMENT,
      );
    }
  });
});
