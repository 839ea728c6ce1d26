/** What tells that a guest has come up: a text on its serial console, or its agent. */
export type BootSign =
  | { readonly kind: "console"; readonly pattern: RegExp; readonly words: string }
  | { readonly kind: "guest-agent" };

/** How backups of a domain are booted to prove them. */
export interface BootSettings {
  /** Program and arguments of a machine of its own; undefined: those of the domain. */
  readonly launch: readonly string[] | undefined;
  /** Where the configuration has the disks, by target. */
  readonly files: ReadonlyMap<string, string>;
  /** Undefined: as the arguments have it. */
  readonly memoryBytes: number | undefined;
  readonly sign: BootSign;
  /** How long it may take to come. */
  readonly timeoutMs: number;
  /** `auto`: KVM if a guest really runs by it. */
  readonly accelerator: "auto" | "kvm" | "tcg";
}

/** `/…/` is a regular expression, anything else plain text. Throws SyntaxError for an expression that is none. */
export function consoleSign(text: string): BootSign {
  const [, expression] = /^\/(.+)\/$/s.exec(text) ?? [];
  const plain = text.replaceAll(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
  return { kind: "console", pattern: new RegExp(expression ?? plain, "mu"), words: text };
}

export function signWords(sign: BootSign): string {
  return sign.kind === "console"
    ? `${JSON.stringify(sign.words)} on its serial console`
    : "an answer of its guest agent";
}
