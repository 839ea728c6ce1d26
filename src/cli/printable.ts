/** Control characters, and those that would turn or split a line: none may reach a terminal from a name or a message. */
const UNSAFE = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** One line that is safe to print, with what is unsafe written as in JSON (`\n`, `\u001b`). */
export function printable(text: string): string {
  return text.replaceAll(UNSAFE, (character) => {
    const named = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[character];
    return named ?? `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}
