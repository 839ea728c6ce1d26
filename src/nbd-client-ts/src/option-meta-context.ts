import type { ByteParser } from "./byte-feeder.js";
import { LIMIT, OPTION, OPTION_REPLY } from "./constants.js";
import {
  badOptionReply,
  optionRefused,
  readOptionReplies,
  sendOption,
  type OptionReply,
  type Send,
} from "./option.js";
import { lengthPrefixed, uint32 } from "./wire.js";

/** Names of the selected metadata contexts by the id that the server gave them, for this connection only. */
export type Contexts = ReadonlyMap<number, string>;

/**
 * Selects metadata contexts ("Metadata querying"). Those that the server lacks are missing from the result; that it
 * refuses the option as a whole counts as having none, since contexts sent before an error are void.
 */
export function* setMetaContexts(
  send: Send,
  exportName: string,
  names: readonly string[],
): ByteParser<Contexts> {
  const queries = names.map(lengthPrefixed);
  const data = Buffer.concat([lengthPrefixed(exportName), uint32(names.length), ...queries]);
  sendOption(send, OPTION.SET_META_CONTEXT, data);

  const contexts = new Map<number, string>();
  const end = yield* readOptionReplies(OPTION.SET_META_CONTEXT, (reply) => {
    if (reply.type !== OPTION_REPLY.META_CONTEXT) return false;
    addContext(contexts, names, reply);
    return true;
  });
  if (end === true) return contexts;
  if (end.type === OPTION_REPLY.ERR_UNKNOWN || end.type === OPTION_REPLY.ERR_TLS_REQD) {
    throw optionRefused(OPTION.SET_META_CONTEXT, end, exportName);
  }
  return new Map();
}

/**
 * Names of the contexts that match the queries: full names, or wildcards such as `qemu:`. None asks for all. The ids
 * in the replies mean nothing here.
 */
export function* listMetaContexts(
  send: Send,
  exportName: string,
  queries: readonly string[],
): ByteParser<readonly string[]> {
  const count = uint32(queries.length);
  const data = Buffer.concat([lengthPrefixed(exportName), count, ...queries.map(lengthPrefixed)]);
  sendOption(send, OPTION.LIST_META_CONTEXT, data);

  const names = new Set<string>();
  const end = yield* readOptionReplies(OPTION.LIST_META_CONTEXT, (reply) => {
    if (reply.type !== OPTION_REPLY.META_CONTEXT) return false;
    const length = reply.payload.length - 4;
    if (length < 1 || length > LIMIT.stringBytes) {
      throw badOptionReply(
        OPTION.LIST_META_CONTEXT,
        `a context's name has 1 to ${LIMIT.stringBytes} bytes, the server sent ${length}`,
      );
    }
    names.add(reply.payload.toString("utf8", 4));
    return true;
  });
  if (end !== true) throw optionRefused(OPTION.LIST_META_CONTEXT, end, exportName);
  return [...names];
}

function addContext(contexts: Map<number, string>, names: readonly string[], reply: OptionReply): void {
  if (reply.payload.length < 5) {
    const length = reply.payload.length;
    throw badOptionReply(
      OPTION.SET_META_CONTEXT,
      `a context has more than 4 bytes, the server sent ${length}`,
    );
  }
  const id = reply.payload.readUInt32BE(0);
  const name = reply.payload.toString("utf8", 4);
  if (!names.includes(name)) {
    throw badOptionReply(OPTION.SET_META_CONTEXT, "the server selected a context that was not asked for");
  }
  if (contexts.has(id) || [...contexts.values()].includes(name)) {
    throw badOptionReply(OPTION.SET_META_CONTEXT, `the server selected ${name} or its id ${id} twice`);
  }
  contexts.set(id, name);
}
