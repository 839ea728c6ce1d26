import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  enterExport,
  listAllExports,
  type HandshakeOptions,
} from "../../../src/nbd-client-ts/src/handshake.js";
import { runParser, type Cuts } from "./support/run-parser.js";
import {
  ALL_FLAGS,
  blockSizeInfo,
  exportInfo,
  greeting,
  OPT,
  optionReply,
  REP,
  REP_ERR,
  u16,
  u32,
  u64,
} from "./support/server-bytes.js";

const NAME = "disk";
const BITMAP = "qemu:dirty-bitmap:b";

function shake(bytes: readonly Buffer[], options: Partial<HandshakeOptions> = {}, cuts: Cuts = []) {
  const sent: Buffer[] = [];
  const parser = enterExport((part) => sent.push(Buffer.from(part)), {
    exportName: NAME,
    metaContexts: [],
    optionalContexts: false,
    ...options,
  });
  return {
    outcome: runParser(parser, Buffer.concat(bytes), cuts),
    sent: Buffer.concat(sent).toString("hex"),
  };
}

const structuredAck = optionReply(OPT.STRUCTURED_REPLY, REP.ACK);
const structuredUnsupported = optionReply(OPT.STRUCTURED_REPLY, REP_ERR.UNSUP);
const goExport = optionReply(OPT.GO, REP.INFO, exportInfo(4096));
const goAck = optionReply(OPT.GO, REP.ACK);
const metaAck = optionReply(OPT.SET_META_CONTEXT, REP.ACK);

function metaContext(id: number, name: string): Buffer {
  return optionReply(OPT.SET_META_CONTEXT, REP.META_CONTEXT, Buffer.concat([u32(id), Buffer.from(name)]));
}

function info(payload: Buffer): Buffer {
  return optionReply(OPT.GO, REP.INFO, payload);
}

const complete = [
  greeting(),
  structuredAck,
  metaContext(1, "base:allocation"),
  metaContext(9, BITMAP),
  metaAck,
  info(Buffer.concat([u16(1), Buffer.from("canonical")])),
  goExport,
  info(blockSizeInfo(512, 4096, 1 << 20)),
  goAck,
];

describe("enterExport", () => {
  it("negotiates structured replies, contexts, size and block sizes", () => {
    const { outcome } = shake(complete, { metaContexts: [BITMAP, "base:allocation"] });
    expect(outcome).toEqual({
      kind: "result",
      unused: 0,
      value: {
        sizeBytes: 4096,
        transmissionFlags: ALL_FLAGS,
        blockSize: { minimumBytes: 512, preferredBytes: 4096, maximumBytes: 1 << 20 },
        structuredReplies: true,
        extendedHeaders: false,
        contexts: new Map([
          [1, "base:allocation"],
          [9, BITMAP],
        ]),
      },
    });
  });

  it("gives the same result for any chunking, also of a damaged handshake", () => {
    const bytes = Buffer.concat(complete);
    const damage = fc.option(
      fc.record({ at: fc.nat(bytes.length - 1), value: fc.integer({ min: 1, max: 255 }) }),
    );
    const cuts = fc.array(fc.integer({ min: 1, max: 30 }), { maxLength: 100 });
    fc.assert(
      fc.property(damage, cuts, (harm, where) => {
        const sent = Buffer.from(bytes);
        if (harm !== null) sent[harm.at] = (sent[harm.at] ?? 0) ^ harm.value;
        const options = { metaContexts: [BITMAP, "base:allocation"] };
        expect(shake([sent], options, where)).toEqual(shake([sent], options));
      }),
      { numRuns: 500 },
    );
  });

  it("answers with the flags that the server knows, and no other", () => {
    for (const [server, client] of [
      [0, 0],
      [1, 1],
      [2, 2],
      [3, 3],
      [0xffff, 3],
    ] as const) {
      expect(shake([greeting(server)]).sent.slice(0, 8)).toBe(u32(client).toString("hex"));
    }
  });

  it("falls back to EXPORT_NAME when the server does not know GO", () => {
    const reply = Buffer.concat([u64(1 << 20), u16(ALL_FLAGS)]);
    const bytes = [greeting(), structuredUnsupported, optionReply(OPT.GO, REP_ERR.UNSUP), reply];
    expect(shake(bytes).outcome).toMatchObject({
      kind: "result",
      value: { sizeBytes: 1 << 20, structuredReplies: false },
    });
  });

  it("skips the 124 reserved zeroes of EXPORT_NAME unless the server has NO_ZEROES", () => {
    const reply = Buffer.concat([u64(512), u16(ALL_FLAGS), Buffer.alloc(124)]);
    const bytes = [greeting(1), structuredUnsupported, optionReply(OPT.GO, REP_ERR.UNSUP), reply];
    expect(shake(bytes).outcome).toMatchObject({ kind: "result", unused: 0, value: { sizeBytes: 512 } });
  });

  it("uses nothing but EXPORT_NAME with a server that is not fixed newstyle", () => {
    const reply = Buffer.concat([u64(512), u16(ALL_FLAGS)]);
    const { outcome, sent } = shake([greeting(2), reply]);
    expect(outcome).toMatchObject({ kind: "result", value: { sizeBytes: 512, structuredReplies: false } });
    expect(sent).toBe(
      "00000002" + "49484156454f5054" + "00000001" + "00000004" + Buffer.from(NAME).toString("hex"),
    );
  });

  it("goes on with the contexts that there are when they are optional", () => {
    const bytes = [greeting(), structuredAck, metaContext(4, "base:allocation"), metaAck, goExport, goAck];
    const options = { metaContexts: ["base:allocation", BITMAP], optionalContexts: true };
    expect(shake(bytes, options).outcome).toMatchObject({
      value: { contexts: new Map([[4, "base:allocation"]]) },
    });
  });

  it("goes on without contexts when the server refuses the option and they are optional", () => {
    const refused = optionReply(OPT.SET_META_CONTEXT, REP_ERR.UNSUP);
    const bytes = [greeting(), structuredAck, metaContext(4, BITMAP), refused, goExport, goAck];
    const options = { metaContexts: [BITMAP], optionalContexts: true };
    expect(shake(bytes, options).outcome).toMatchObject({ value: { contexts: new Map() } });
  });

  it("waits for more when the handshake ends early", () => {
    const bytes = Buffer.concat(complete);
    for (let length = 0; length < bytes.length; length += 1) {
      const options = { metaContexts: [BITMAP, "base:allocation"] };
      expect(shake([bytes.subarray(0, length)], options).outcome).toEqual({ kind: "hungry" });
    }
  });
});

const withContexts = { metaContexts: [BITMAP] };
const toGo = [greeting(), structuredAck];

describe("enterExport refuses a server that", () => {
  const cases: readonly [
    culprit: string,
    code: string,
    bytes: Buffer[],
    options?: Partial<HandshakeOptions>,
  ][] = [
    ["greets with something else", "NOT_NBD", [Buffer.from("HTTP/1.1 400 Bad Request")]],
    ["greets with a wrong second magic", "NOT_NBD", [Buffer.from("NBDMAGICIHAVEOPS\0\0")]],
    ["speaks the oldstyle protocol", "UNSUPPORTED_SERVER", [Buffer.from("NBDMAGIC"), u64(0x00420281861253n)]],
    ["sends a wrong magic with an option reply", "BAD_MAGIC", [greeting(), Buffer.alloc(20)]],
    ["echoes another option", "BAD_REPLY", [greeting(), goAck]],
    [
      "acknowledges with a payload",
      "BAD_REPLY",
      [greeting(), optionReply(OPT.STRUCTURED_REPLY, REP.ACK, u32(0))],
    ],
    [
      "announces an option reply of 4 GiB",
      "BAD_REPLY",
      [greeting(), structuredAck.subarray(0, 16), u32(0xffffffff)],
    ],
    [
      "answers with an unknown type that is no error",
      "BAD_REPLY",
      [greeting(), optionReply(OPT.STRUCTURED_REPLY, 77)],
    ],
    ["answers GO with an unknown type that is no error", "BAD_REPLY", [...toGo, optionReply(OPT.GO, 77)]],
    ["acknowledges GO without the size", "BAD_REPLY", [...toGo, info(blockSizeInfo(1, 512, 512)), goAck]],
    ["sends a short info", "BAD_REPLY", [...toGo, info(Buffer.alloc(1))]],
    ["sends a short export info", "BAD_REPLY", [...toGo, info(exportInfo(512).subarray(0, 11))]],
    ["sends a long export info", "BAD_REPLY", [...toGo, info(Buffer.concat([exportInfo(512), u16(0)]))]],
    ["offers more than 2^53 bytes", "BAD_REPLY", [...toGo, info(exportInfo(1n << 53n))]],
    [
      "sends a short block size info",
      "BAD_REPLY",
      [...toGo, info(blockSizeInfo(1, 512, 512).subarray(0, 13))],
    ],
    ["has a minimum block size of 0", "BAD_REPLY", [...toGo, info(blockSizeInfo(0, 512, 512))]],
    [
      "has a minimum block size that is no power of two",
      "BAD_REPLY",
      [...toGo, info(blockSizeInfo(513, 1024, 4096))],
    ],
    [
      "has a minimum block size above 64 KiB",
      "BAD_REPLY",
      [...toGo, info(blockSizeInfo(1 << 17, 1 << 17, 1 << 20))],
    ],
    ["prefers less than the minimum", "BAD_REPLY", [...toGo, info(blockSizeInfo(4096, 512, 1 << 20))]],
    ["has a maximum below the minimum", "BAD_REPLY", [...toGo, info(blockSizeInfo(4096, 4096, 512))]],
    ["repeats infos for ever", "BAD_REPLY", [...toGo, ...Array<Buffer>(16386).fill(goExport)]],
    [
      "lacks the export",
      "EXPORT_NOT_FOUND",
      [...toGo, optionReply(OPT.GO, REP_ERR.UNKNOWN, Buffer.from("who?"))],
    ],
    ["requires TLS", "TLS_REQUIRED", [greeting(), optionReply(OPT.STRUCTURED_REPLY, REP_ERR.TLS_REQD)]],
    ["requires TLS for GO", "TLS_REQUIRED", [...toGo, optionReply(OPT.GO, REP_ERR.TLS_REQD)]],
    ["shuts down", "SERVER_SHUTTING_DOWN", [...toGo, optionReply(OPT.GO, REP_ERR.SHUTDOWN)]],
    ["forbids the export", "OPTION_REFUSED", [...toGo, optionReply(OPT.GO, REP_ERR.POLICY)]],
    ["refuses GO for an unknown reason", "OPTION_REFUSED", [...toGo, optionReply(OPT.GO, 0x8000ffff)]],
    ["lacks a context", "CONTEXT_NOT_OFFERED", [...toGo, metaAck], withContexts],
    [
      "lacks structured replies when contexts are asked for",
      "CONTEXT_NOT_OFFERED",
      [greeting(), structuredUnsupported],
      withContexts,
    ],
    [
      "lacks the export when contexts are asked for",
      "EXPORT_NOT_FOUND",
      [...toGo, optionReply(OPT.SET_META_CONTEXT, REP_ERR.UNKNOWN)],
      withContexts,
    ],
    ["selects a context that was not asked for", "BAD_REPLY", [...toGo, metaContext(1, "x:y")], withContexts],
    [
      "selects a context twice",
      "BAD_REPLY",
      [...toGo, metaContext(1, BITMAP), metaContext(2, BITMAP)],
      withContexts,
    ],
    [
      "gives two contexts the same id",
      "BAD_REPLY",
      [...toGo, metaContext(1, BITMAP), metaContext(1, "base:allocation")],
      { metaContexts: [BITMAP, "base:allocation"] },
    ],
    [
      "sends a context without a name",
      "BAD_REPLY",
      [...toGo, optionReply(OPT.SET_META_CONTEXT, REP.META_CONTEXT, u32(1))],
      withContexts,
    ],
  ];

  it.each(cases)("%s (%s)", (_culprit, code, bytes, options = {}) => {
    expect(shake(bytes, options).outcome).toMatchObject({ kind: "error", code });
  });

  it("lacks the export, and repeats its text without control characters", () => {
    const reply = optionReply(OPT.GO, REP_ERR.UNKNOWN, Buffer.from("who\r\nis disk?"));
    expect(shake([...toGo, reply]).outcome).toMatchObject({
      message: 'NBD_OPT_GO for export "disk" was refused: the server has no such export: who is disk?',
    });
  });
});

describe("listAllExports", () => {
  const run = (bytes: readonly Buffer[]) =>
    runParser(
      listAllExports(() => undefined),
      Buffer.concat(bytes),
    );
  const listed = (name: string, description = "") =>
    optionReply(OPT.LIST, REP.SERVER, Buffer.concat([u32(name.length), Buffer.from(name + description)]));

  it("gives names and descriptions", () => {
    const bytes = [greeting(), listed("a"), listed("b", "the other"), optionReply(OPT.LIST, REP.ACK)];
    expect(run(bytes)).toMatchObject({
      value: [
        { name: "a", description: "" },
        { name: "b", description: "the other" },
      ],
    });
  });

  it("refuses a name that is longer than its reply", () => {
    const reply = optionReply(OPT.LIST, REP.SERVER, Buffer.concat([u32(5), Buffer.from("four")]));
    expect(run([greeting(), reply])).toMatchObject({ code: "BAD_REPLY" });
  });

  it("tells that the server does not want to list", () => {
    expect(run([greeting(), optionReply(OPT.LIST, REP_ERR.POLICY)])).toMatchObject({
      code: "OPTION_REFUSED",
    });
  });
});
