import { describe, expect, it } from "vitest";
import { connectNbd, describeExport, formatNbdUri, listMetaContexts } from "nbd-client-ts";
import { failureOf, serving } from "./support/connected.js";
import {
  blockSizeInfo,
  exportInfo,
  greeting,
  OPT,
  optionReply,
  REP,
  REP_ERR,
  u16,
  u32,
} from "./support/server-bytes.js";

type Option = { readonly option: number; readonly data: Buffer };

/** A server that answers each option with the given replies; `seen` gets the options. */
async function uriOf(
  answers: Readonly<Record<number, Buffer[]>>,
  seen: Option[] = [],
  flags = 3,
): Promise<string> {
  const server = await serving(async (peer) => {
    await peer.send(greeting(flags));
    await peer.receive(4);
    for (;;) {
      const option = await peer.receiveOption();
      seen.push(option);
      await peer.send(...(answers[option.option] ?? [optionReply(option.option, REP_ERR.UNSUP)]));
    }
  });
  return formatNbdUri({ exportName: "disk", socketPath: server.socketPath });
}

const info = (type: number, payload: Buffer) =>
  optionReply(OPT.INFO, REP.INFO, Buffer.concat([u16(type), payload]));
const infoAck = optionReply(OPT.INFO, REP.ACK);
const size = optionReply(OPT.INFO, REP.INFO, exportInfo(12345, 1 | 2 | 256));

describe("describeExport", () => {
  it("tells what the server says, and ends the handshake with ABORT", async () => {
    const seen: Option[] = [];
    const blockSize = optionReply(OPT.INFO, REP.INFO, blockSizeInfo(512, 4096, 1 << 20));
    const infos = [
      info(77, u16(0)),
      info(2, Buffer.from("two\nlines")),
      size,
      blockSize,
      info(1, Buffer.from("real")),
    ];
    const description = await describeExport(await uriOf({ [OPT.INFO]: [...infos, infoAck] }, seen));
    expect(description).toMatchObject({
      name: "real",
      description: "two lines",
      sizeBytes: 12345,
      readOnly: true,
      canMultiConn: true,
      canTrim: false,
      blockSize: { minimumBytes: 512, preferredBytes: 4096, maximumBytes: 1 << 20 },
    });
    await expect.poll(() => seen.map(({ option }) => option)).toEqual([OPT.INFO, OPT.ABORT]);
  });

  it("takes the asked name for the export's where the server says nothing", async () => {
    const description = await describeExport(await uriOf({ [OPT.INFO]: [size, infoAck] }));
    expect(description).toMatchObject({ name: "disk", description: "" });
  });

  const long = Buffer.alloc(4097, "x");
  it.each<[culprit: string, code: string, replies: Buffer[]]>([
    ["does not know INFO", "OPTION_REFUSED", [optionReply(OPT.INFO, REP_ERR.UNSUP)]],
    ["lacks the export", "EXPORT_NOT_FOUND", [optionReply(OPT.INFO, REP_ERR.UNKNOWN)]],
    ["requires TLS", "TLS_REQUIRED", [optionReply(OPT.INFO, REP_ERR.TLS_REQD)]],
    ["acknowledges without the size", "BAD_REPLY", [infoAck]],
    ["answers GO", "BAD_REPLY", [optionReply(OPT.GO, REP.ACK)]],
    ["has a name of more than 4096 bytes", "BAD_REPLY", [info(1, long)]],
    ["has a description of more than 4096 bytes", "BAD_REPLY", [info(2, long)]],
  ])("refuses a server that %s (%s)", async (_culprit, code, replies) => {
    const failure = await failureOf(describeExport(await uriOf({ [OPT.INFO]: replies })));
    expect(failure).toMatchObject({ code });
  });

  it("refuses a server that is not fixed newstyle", async () => {
    const failure = await failureOf(describeExport(await uriOf({}, [], 2)));
    expect(failure).toMatchObject({ code: "UNSUPPORTED_SERVER" });
  });
});

describe("listMetaContexts", () => {
  const structured = { [OPT.STRUCTURED_REPLY]: [optionReply(OPT.STRUCTURED_REPLY, REP.ACK)] };
  const context = (id: number, name: string) =>
    optionReply(OPT.LIST_META_CONTEXT, REP.META_CONTEXT, Buffer.concat([u32(id), Buffer.from(name)]));
  const ack = optionReply(OPT.LIST_META_CONTEXT, REP.ACK);

  it("asks with wildcards, ignores ids and gives each name once", async () => {
    const seen: Option[] = [];
    const replies = [context(0, "qemu:a"), context(0, "base:allocation"), context(9, "qemu:a"), ack];
    const uri = await uriOf({ ...structured, [OPT.LIST_META_CONTEXT]: replies }, seen);
    expect(await listMetaContexts(uri, { queries: ["qemu:", "base:"] })).toEqual([
      "qemu:a",
      "base:allocation",
    ]);
    const asked = [u32(4), "disk", u32(2), u32(5), "qemu:", u32(5), "base:"].map((part) => Buffer.from(part));
    expect(seen.find(({ option }) => option === OPT.LIST_META_CONTEXT)?.data).toEqual(Buffer.concat(asked));
  });

  it("finds none where the server has no structured replies", async () => {
    expect(await listMetaContexts(await uriOf({}))).toEqual([]);
  });

  it.each<[culprit: string, code: string, replies: Buffer[]]>([
    ["sends a context without a name", "BAD_REPLY", [context(1, "")]],
    ["sends a context of more than 4096 bytes", "BAD_REPLY", [context(1, "x".repeat(4097))]],
    ["lists for ever", "BAD_REPLY", Array<Buffer>(16386).fill(context(1, "x:y"))],
    ["lacks the export", "EXPORT_NOT_FOUND", [optionReply(OPT.LIST_META_CONTEXT, REP_ERR.UNKNOWN)]],
    ["does not know the option", "OPTION_REFUSED", [optionReply(OPT.LIST_META_CONTEXT, REP_ERR.UNSUP)]],
  ])("refuses a server that %s (%s)", async (_culprit, code, replies) => {
    const uri = await uriOf({ ...structured, [OPT.LIST_META_CONTEXT]: [Buffer.concat(replies)] });
    expect(await failureOf(listMetaContexts(uri))).toMatchObject({ code });
  });
});

describe("connectNbd with a URI", () => {
  it("refuses one that is malformed by a rejection", async () => {
    expect(await failureOf(connectNbd("nbd+unix:///disk"))).toMatchObject({ code: "INVALID_URI" });
  });

  it("takes the options beside it", async () => {
    const server = await serving(async (peer) => {
      await peer.enter({ contexts: { 1: "base:allocation" } });
      await peer.hungUp();
    });
    const uri = formatNbdUri({ exportName: "disk", socketPath: server.socketPath });
    const connection = await connectNbd(uri, { metaContexts: ["base:allocation"] });
    expect(connection).toMatchObject({ exportName: "disk", contexts: ["base:allocation"] });
    connection.destroy();
  });

  it("requires TLS for nbds, also where options ask for other things about it", async () => {
    const server = await serving((peer) => peer.enter());
    const uri = formatNbdUri({ exportName: "disk", socketPath: server.socketPath, tls: {} });
    expect(await failureOf(connectNbd(uri))).toMatchObject({ code: "TLS_NOT_OFFERED" });
    const failure = await failureOf(connectNbd(uri, { tls: { verifyPeer: false } }));
    expect(failure).toMatchObject({ code: "TLS_NOT_OFFERED" });
    expect(server.failure).toBeDefined();
  });
});
