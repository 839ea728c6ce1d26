import { Option } from "@commander-js/extra-typings";

/** A disk for the directory, or for a place of its own. */
export interface RestoreDisk {
  readonly target: string;
  readonly place: string | undefined;
}

/** `--disk T` or `--disk T=PLACE`, as often as needed. */
export function restoreDiskOption() {
  return new Option(
    "--disk <target[=place]>",
    "restore this disk (may be repeated); to a new file, over a block device, or over an NBD export, if its path or URI is given",
  )
    .default([] as RestoreDisk[], "all disks")
    .argParser((text: string, before: RestoreDisk[]) => [...before, parse(text)]);
}

function parse(text: string): RestoreDisk {
  const at = text.indexOf("=");
  return at < 0
    ? { target: text, place: undefined }
    : { target: text.slice(0, at), place: text.slice(at + 1) };
}

/** Anything else is a path, which counts from the working directory. */
export function isNbdUri(place: string): boolean {
  return /^nbds?(\+unix)?:/i.test(place);
}
