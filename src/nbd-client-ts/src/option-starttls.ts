import type { ByteParser } from "./byte-feeder.js";
import { HANDSHAKE_FLAG, OPTION, OPTION_REPLY } from "./constants.js";
import { NbdError } from "./errors.js";
import { greet } from "./handshake.js";
import {
  badOptionReply,
  isErrorReply,
  optionRefused,
  readOptionReply,
  sendOption,
  type Send,
} from "./option.js";

/** Where the clear part of a connection that is to have TLS ends. */
export interface TlsAnswer {
  /** Whether the TLS handshake starts now. False only where TLS was not required. */
  readonly granted: boolean;
  readonly handshakeFlags: number;
}

/**
 * The first step where TLS is wanted. It is the first option, so nothing is agreed on before TLS that would have to
 * be forgotten; and where TLS is required, no other option, EXPORT_NAME above all, is ever sent in clear ("Protocol
 * downgrade attacks").
 */
export function* startTls(send: Send, required: boolean): ByteParser<TlsAnswer> {
  const handshakeFlags = yield* greet(send);
  if ((handshakeFlags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) === 0) {
    if (!required) return { granted: false, handshakeFlags };
    throw new NbdError(
      "TLS_NOT_OFFERED",
      "Expected a server with TLS, this one is not fixed newstyle and cannot have it",
    );
  }
  sendOption(send, OPTION.STARTTLS);
  const reply = yield* readOptionReply(OPTION.STARTTLS);
  if (reply.type === OPTION_REPLY.ACK) return { granted: true, handshakeFlags };
  if (!isErrorReply(reply)) throw badOptionReply(OPTION.STARTTLS, `its type ${reply.type} is not known`);
  if (reply.type === OPTION_REPLY.ERR_SHUTDOWN) throw optionRefused(OPTION.STARTTLS, reply, "");
  if (!required) return { granted: false, handshakeFlags };
  const { message, serverText = "" } = optionRefused(OPTION.STARTTLS, reply, "");
  throw new NbdError("TLS_NOT_OFFERED", `Expected a server with TLS: ${message}`, { serverText });
}
