import { appendFileSync } from "node:fs";

/** Counts what was injected, for the table in README.md: one line a kind, printed when a test file has ended. */
export class Figures {
  readonly #counts = new Map<string, Map<string, number>>();

  count(name: string, kind: string, times = 1): void {
    const kinds = this.#counts.get(name) ?? new Map<string, number>();
    kinds.set(kind, (kinds.get(kind) ?? 0) + times);
    this.#counts.set(name, kinds);
  }

  /** To the file named by FLEECE_FAULTS_FIGURES, or else to the standard output. */
  print(): void {
    const lines = [...this.#counts].map(([name, kinds]) => {
      const numbers = [...kinds].map(([kind, times]) => `${times} ${kind}`).join(", ");
      return `| ${name} | ${numbers} |\n`;
    });
    const file = process.env["FLEECE_FAULTS_FIGURES"];
    if (file === undefined) process.stdout.write(lines.join(""));
    else appendFileSync(file, lines.join(""));
  }
}
