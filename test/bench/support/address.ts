import { parseNbdUri, type NbdUri } from "nbd-client-ts";

/** An NBD URI, or the bare path of a socket with one default export. */
export function parseAddress(text: string): NbdUri {
  return text.includes("://") ? parseNbdUri(text) : { socketPath: text, exportName: "" };
}

/** The arguments of a script, after npm's `--`. */
export function argumentsOf(usage: string, minimum: number): string[] {
  const given = process.argv.slice(2);
  if (given.length >= minimum) return given;
  process.stderr.write(`usage: ${usage}\n`);
  process.exit(2);
}
