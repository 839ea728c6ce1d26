import { Option } from "@commander-js/extra-typings";

/** `--disk T`, as often as needed. Not variadic: it would swallow the arguments that follow. */
export function diskOption(what: string) {
  return new Option("--disk <target>", `${what} (may be repeated)`)
    .default([] as string[], "all disks")
    .argParser((target: string, before: string[]) => [...before, target]);
}
