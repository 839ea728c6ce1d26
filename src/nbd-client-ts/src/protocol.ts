/** `nbd-client-ts/protocol`: the numbers of the protocol and its smallest pieces, for who speaks it from the other side. */
export {
  CHUNK,
  CHUNK_ERROR_BIT,
  CHUNK_FLAG_DONE,
  COMMAND,
  COMMAND_FLAG,
  HANDSHAKE_FLAG,
  INFO,
  NBD_MAGIC,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY,
  OPTION_REPLY_ERROR_BIT,
  OPTION_REPLY_MAGIC,
  TRANSMISSION_FLAG,
} from "./constants.js";
export { hasMagic, lengthPrefixed, uint16, uint32, type Magic } from "./wire.js";
