import { TRANSMISSION_FLAG } from "./constants.js";

/** What a server offers for an export ("Transmission flags"). */
export interface Capabilities {
  readonly readOnly: boolean;
  readonly canFlush: boolean;
  readonly canFua: boolean;
  readonly canTrim: boolean;
  readonly canWriteZeroes: boolean;
  readonly canFastZero: boolean;
  readonly canDf: boolean;
  readonly canCache: boolean;
  readonly canMultiConn: boolean;
}

export function readCapabilities(transmissionFlags: number): Capabilities {
  // Without HAS_FLAGS the others mean nothing.
  const flags = (transmissionFlags & TRANSMISSION_FLAG.HAS_FLAGS) === 0 ? 0 : transmissionFlags;
  const has = (name: keyof typeof TRANSMISSION_FLAG) => (flags & TRANSMISSION_FLAG[name]) !== 0;
  return {
    readOnly: has("READ_ONLY"),
    canFlush: has("SEND_FLUSH"),
    canFua: has("SEND_FUA"),
    canTrim: has("SEND_TRIM"),
    canWriteZeroes: has("SEND_WRITE_ZEROES"),
    canFastZero: has("SEND_WRITE_ZEROES") && has("SEND_FAST_ZERO"),
    canDf: has("SEND_DF"),
    canCache: has("SEND_CACHE"),
    canMultiConn: has("CAN_MULTI_CONN"),
  };
}
