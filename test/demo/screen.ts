import { styleText } from "node:util";
import { formatDuration } from "../../src/shared/units.js";

type Style = Parameters<typeof styleText>[0];

const worthTellingMs = 100;
const coloured = process.stdout.isTTY && (process.env["NO_COLOR"] ?? "") === "";

function styled(style: Style, text: string): string {
  return coloured ? styleText(style, text) : text;
}

/** Everything that the demo prints, on standard output. */
export class Screen {
  #steps = 0;

  title(text: string): void {
    this.#print(styled("bold", text));
  }

  /** A numbered heading, what `action` prints, and how long it took. */
  async step<T>(text: string, action: () => Promise<T>): Promise<T> {
    this.#steps += 1;
    const startMs = performance.now();
    this.#print(`\n${styled("bold", `${this.#steps}. ${text}`)}`);
    const result = await action();
    const tookMs = performance.now() - startMs;
    if (tookMs >= worthTellingMs) this.#print(styled("dim", `   ${formatDuration(tookMs)}`));
    return result;
  }

  line(text: string): void {
    this.#print(`   ${text}`);
  }

  /** What a person would type, on the host or in the guest. */
  command(prompt: "$" | "guest#", text: string): void {
    this.#print(`   ${styled("cyan", `${prompt} ${text}`)}`);
  }

  output(text: string): void {
    for (const line of text.trimEnd().split("\n")) this.#print(styled("dim", `   | ${line}`.trimEnd()));
  }

  held(text: string): void {
    this.#print(`   ${styled("green", "ok")}      ${text}`);
  }

  failed(text: string, facts: readonly string[] = []): void {
    this.#print(`   ${styled("red", "FAILED")}  ${text}`);
    for (const fact of facts) this.#print(`           ${fact}`);
  }

  /** The first column is aligned to the left, the others to the right. */
  table(head: readonly string[], rows: readonly (readonly string[])[]): void {
    const widths = head.map((_, column) =>
      Math.max(...[head, ...rows].map((row) => row[column]?.length ?? 0)),
    );
    const format = (row: readonly string[]): string =>
      row
        .map((cell, column) =>
          column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
        )
        .join("  ");
    this.#print(`\n   ${styled("bold", format(head))}`);
    for (const row of rows) this.line(format(row));
  }

  verdict(good: boolean, text: string): void {
    this.#print(`\n${styled(["bold", good ? "green" : "red"], text)}`);
  }

  #print(text: string): void {
    process.stdout.write(`${text}\n`);
  }
}
