import {
  HANDSHAKE_FLAG,
  INFO,
  lengthPrefixed,
  OPTION,
  OPTION_REPLY,
  TRANSMISSION_FLAG,
  uint16,
} from "nbd-client-ts/protocol";
import { errorMessage } from "../../shared/errors.js";
import { Backend } from "./backend.js";
import type { ClientStream } from "./client-stream.js";
import type { Grant } from "./grants.js";
import { Refusal } from "./refusal.js";
import {
  decode,
  greeting,
  isError,
  LIMIT,
  OPTION_HEADER_BYTES,
  optionReply,
  parseNamed,
  parseOptionHeader,
  type Option,
  type Reply,
} from "./wire.js";

const NOTHING = Buffer.alloc(0);
/** After the size and the flags in the reply to EXPORT_NAME, unless both sides can do without. */
const PADDING_BYTES = 124;
/** Neither the list of info requests nor a malformed option gets more than these words: they tell nothing of the backend. */
const WORDS: Readonly<Record<number, string>> = {
  [OPTION_REPLY.ERR_TLS_REQD]: "TLS is required",
  [OPTION_REPLY.ERR_UNKNOWN]: "No such export",
  [OPTION_REPLY.ERR_SHUTDOWN]: "The export cannot be read now",
  [OPTION_REPLY.ERR_INVALID]: "The option is malformed or out of place",
  [OPTION_REPLY.ERR_POLICY]: "Not allowed",
};

/** The exports as one client may see them. */
export interface Visible {
  /** Undefined if there is none or this client may not read it: the two look the same from here. */
  find(exportName: string): Grant | undefined;
  list(): readonly Grant[];
  /** An export was asked for that `find` does not have, or that cannot be had. */
  denied(exportName: string, reason: string): void;
}

/** What the client has chosen, with a backend in the transmission phase. */
export interface Chosen {
  readonly grant: Grant;
  readonly backend: Backend;
}

/** Greets. Returns whether the client wants the padding of EXPORT_NAME. */
export async function greet(client: ClientStream): Promise<{ readonly padded: boolean }> {
  await client.send(greeting());
  const flags = (await client.take(4)).readUInt32BE(0);
  if (
    (flags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) === 0 ||
    flags > (HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES)
  ) {
    throw new Refusal(`it does not speak the fixed newstyle handshake: flags ${flags}`);
  }
  return { padded: (flags & HANDSHAKE_FLAG.NO_ZEROES) === 0 };
}

/** Options before TLS. Returns true when TLS must begin, false when the client said goodbye. */
export async function awaitStartTls(client: ClientStream): Promise<boolean> {
  for (let count = 0; count < LIMIT.clearOptions; count += 1) {
    const { option, data } = await receiveOption(client, LIMIT.clearOptionBytes);
    if (option === OPTION.STARTTLS && data.length === 0) return true;
    if (option === OPTION.ABORT) return await goodbye(client);
    // It has no error reply.
    if (option === OPTION.EXPORT_NAME) throw new Refusal("it asks for an export without TLS");
    await client.send(
      failed(option, option === OPTION.STARTTLS ? OPTION_REPLY.ERR_INVALID : OPTION_REPLY.ERR_TLS_REQD),
    );
  }
  throw new Refusal("it does not begin TLS");
}

/** Consents to TLS. Bytes that came in clear after the request would else be taken for protected ones. */
export async function consentToTls(client: ClientStream): Promise<void> {
  if (client.detach().length > 0) throw new Refusal("bytes came in clear where TLS must begin");
  await client.send(acknowledge(OPTION.STARTTLS));
}

/** Answers options until the client has entered an export, or leaves (undefined). */
export class Negotiation {
  readonly #client: ClientStream;
  readonly #visible: Visible;
  readonly #padded: boolean;
  readonly #signal: AbortSignal;
  #structuredReplies = false;
  #chosen: Chosen | undefined;

  constructor(client: ClientStream, options: { visible: Visible; padded: boolean; signal: AbortSignal }) {
    this.#client = client;
    this.#visible = options.visible;
    this.#padded = options.padded;
    this.#signal = options.signal;
  }

  async run(): Promise<Chosen | undefined> {
    let bytes = 0;
    for (let count = 0; count < LIMIT.optionsTotal && bytes < LIMIT.optionsBytes; count += 1) {
      const option = await receiveOption(this.#client, LIMIT.optionBytes);
      bytes += OPTION_HEADER_BYTES + option.data.length;
      if (option.option === OPTION.ABORT) {
        this.#leave();
        await goodbye(this.#client);
        return undefined;
      }
      if (await this.#answer(option)) return this.#chosen;
    }
    throw new Refusal("it asks without end");
  }

  /** True when the client has entered its export. */
  async #answer({ option, data }: Option): Promise<boolean> {
    switch (option) {
      case OPTION.EXPORT_NAME:
        return await this.#enterByName(data);
      case OPTION.INFO:
      case OPTION.GO:
      case OPTION.LIST_META_CONTEXT:
      case OPTION.SET_META_CONTEXT:
        return await this.#askBackend(option, data);
      case OPTION.STRUCTURED_REPLY:
        await this.#acceptStructuredReplies(data);
        return false;
      case OPTION.LIST:
        await this.#list(data);
        return false;
      default:
        await this.#client.send(
          failed(option, option === OPTION.STARTTLS ? OPTION_REPLY.ERR_INVALID : OPTION_REPLY.ERR_UNSUP),
        );
        return false;
    }
  }

  async #acceptStructuredReplies(data: Buffer): Promise<void> {
    const isValid = data.length === 0 && !this.#structuredReplies;
    if (isValid) this.#structuredReplies = true;
    const option = OPTION.STRUCTURED_REPLY;
    await this.#client.send(isValid ? acknowledge(option) : failed(option, OPTION_REPLY.ERR_INVALID));
  }

  async #list(data: Buffer): Promise<void> {
    if (data.length > 0) {
      await this.#client.send(failed(OPTION.LIST, OPTION_REPLY.ERR_INVALID));
      return;
    }
    const servers = this.#visible
      .list()
      .map(({ terms }) => ({ type: OPTION_REPLY.SERVER, payload: lengthPrefixed(terms.exportName) }));
    const replies = servers.map((reply) => optionReply(OPTION.LIST, reply));
    await this.#client.send(...replies, acknowledge(OPTION.LIST));
  }

  async #askBackend(option: number, data: Buffer): Promise<boolean> {
    const named = parseNamed(option, data);
    if (named === undefined) {
      await this.#client.send(failed(option, OPTION_REPLY.ERR_INVALID));
      return false;
    }
    const replies = await this.#replies(named.exportName, option, named.rest);
    const last = replies.at(-1)?.type;
    if (last !== OPTION_REPLY.ACK) {
      await this.#client.send(failed(option, last ?? OPTION_REPLY.ERR_SHUTDOWN));
      return false;
    }
    await this.#client.send(...replies.map((reply) => optionReply(option, reply)));
    return option === OPTION.GO;
  }

  /** EXPORT_NAME has no way to say no but to hang up. */
  async #enterByName(data: Buffer): Promise<boolean> {
    const exportName = decode(data);
    if (exportName === undefined) throw new Refusal("it asks for an export by a name that is none");
    const replies = await this.#replies(exportName, OPTION.GO, uint16(0));
    const info = replies.find(isExportInfo)?.payload;
    if (replies.at(-1)?.type !== OPTION_REPLY.ACK || info === undefined) {
      throw new Refusal("it asks for an export that it cannot have, in a way that has no error reply");
    }
    const padding = Buffer.alloc(this.#padded ? PADDING_BYTES : 0);
    await this.#client.send(info.subarray(2, 12), padding);
    return true;
  }

  /** What the backend says about a granted export, with the name that the client knows; else a single error. */
  async #replies(exportName: string, option: number, rest: Buffer): Promise<readonly Reply[]> {
    const grant = this.#visible.find(exportName);
    if (grant === undefined) {
      this.#visible.denied(exportName, "the export is not granted to it");
      return [{ type: OPTION_REPLY.ERR_UNKNOWN, payload: NOTHING }];
    }
    try {
      const backend = await this.#backendOf(grant);
      const replies = await backend.ask(option, rest);
      if (option === OPTION.GO && !replies.every(isReadOnly)) {
        // The backend has entered the transmission phase, so it is of no more use.
        this.#leave();
        this.#visible.denied(exportName, "the export is writable");
        return [{ type: OPTION_REPLY.ERR_POLICY, payload: NOTHING }];
      }
      return replies.map((reply) => withName(reply, exportName));
    } catch (error) {
      this.#signal.throwIfAborted();
      this.#leave();
      this.#visible.denied(exportName, errorMessage(error));
      return [{ type: OPTION_REPLY.ERR_SHUTDOWN, payload: NOTHING }];
    }
  }

  /** One backend at a time: contexts of another export are void as soon as this one is asked about. */
  async #backendOf(grant: Grant): Promise<Backend> {
    if (this.#chosen?.grant !== grant) {
      this.#leave();
      const { exportName, backend: address } = grant.terms;
      const signal = AbortSignal.any([this.#signal, grant.ended.signal]);
      this.#chosen = { grant, backend: await Backend.connect(exportName, address, signal) };
    }
    const { backend } = this.#chosen;
    if (this.#structuredReplies) await backend.negotiateStructuredReplies();
    return backend;
  }

  #leave(): void {
    this.#chosen?.backend.destroy();
    this.#chosen = undefined;
  }
}

async function receiveOption(client: ClientStream, maximumBytes: number): Promise<Option> {
  const header = parseOptionHeader(await client.take(OPTION_HEADER_BYTES));
  if (header === undefined) throw new Refusal("it sends something else than options");
  const { option, length } = header;
  if (length > maximumBytes) throw new Refusal(`its option ${option} has ${length} bytes`);
  return { option, data: await client.take(length) };
}

async function goodbye(client: ClientStream): Promise<false> {
  await client.send(acknowledge(OPTION.ABORT));
  return false;
}

function acknowledge(option: number): Buffer {
  return optionReply(option, { type: OPTION_REPLY.ACK, payload: NOTHING });
}

function failed(option: number, type: number): Buffer {
  return optionReply(option, { type, payload: Buffer.from(WORDS[type] ?? "") });
}

function isInfo(reply: Reply, kind: number): boolean {
  return (
    reply.type === OPTION_REPLY.INFO && reply.payload.length >= 2 && reply.payload.readUInt16BE(0) === kind
  );
}

function isExportInfo(reply: Reply): boolean {
  return isInfo(reply, INFO.EXPORT) && reply.payload.length === 12;
}

/** Anything but the info about a writable export. */
function isReadOnly(reply: Reply): boolean {
  if (!isInfo(reply, INFO.EXPORT)) return true;
  return isExportInfo(reply) && (reply.payload.readUInt16BE(10) & TRANSMISSION_FLAG.READ_ONLY) !== 0;
}

function withName(reply: Reply, exportName: string): Reply {
  if (isError(reply) || !isInfo(reply, INFO.NAME)) return reply;
  return { type: reply.type, payload: Buffer.concat([uint16(INFO.NAME), Buffer.from(exportName, "utf8")]) };
}
