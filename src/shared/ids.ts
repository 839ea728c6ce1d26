import { randomBytes } from "node:crypto";

/** Crockford's alphabet in lower case: no letters that look like digits. */
const ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz";

/** Random characters, five bits each, that may stand in node names, paths and options. */
export function randomId(length: number): string {
  return Array.from(randomBytes(length), (byte) => ALPHABET.charAt(byte & 31)).join("");
}

/** `20261121T105300Z-k3j9ab`: sorts by time, and 30 random bits keep ids of the same second apart. */
export function timedId(timeMs: number): string {
  const time = new Date(timeMs).toISOString().replaceAll(/[-:]|\.\d+/g, "");
  return `${time}-${randomId(6)}`;
}
