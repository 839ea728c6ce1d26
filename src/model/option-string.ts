/**
 * QEMU's option strings: `a=1,b=two,,three` has the pairs a and b, and a comma in b's value. A part without `=` is the value of the
 * option's implied key (`q35` of `-machine`) or a flag (`server`). What is not changed is printed as it was read.
 */
export interface OptionPair {
  /** Undefined without a `=`. */
  readonly key: string | undefined;
  readonly value: string;
}

export function parseOptionString(text: string): OptionPair[] {
  const pairs: OptionPair[] = [];
  for (const part of splitAtSingleCommas(text)) {
    const at = part.indexOf("=");
    const key = at < 0 ? undefined : part.slice(0, at);
    pairs.push({ key, value: part.slice(at + 1).replaceAll(",,", ",") });
  }
  return pairs;
}

export function printOptionString(pairs: readonly OptionPair[]): string {
  return pairs
    .map(({ key, value }) => `${key === undefined ? "" : `${key}=`}${value.replaceAll(",", ",,")}`)
    .join(",");
}

/** The last one counts, as for QEMU. */
export function optionValue(pairs: readonly OptionPair[], key: string): string | undefined {
  return pairs.findLast((pair) => pair.key === key)?.value;
}

/** Commas count from the left: of three, the first two are one comma of the value. */
function splitAtSingleCommas(text: string): string[] {
  const parts: string[] = [];
  let start = 0;
  for (let at = 0; at < text.length; at++) {
    if (text[at] !== ",") continue;
    if (text[at + 1] === ",") {
      at++;
      continue;
    }
    parts.push(text.slice(start, at));
    start = at + 1;
  }
  parts.push(text.slice(start));
  return parts;
}
