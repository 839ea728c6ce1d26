import { appendFileSync } from "node:fs";

/** A row of the table in README.md: on the standard output, or at the end of the file named by FLEECE_FAULTS_FIGURES. */
export function printFigure(fault: string, moment: string, times: number): void {
  const line = `| ${fault} | ${moment} | ${times} |\n`;
  const file = process.env["FLEECE_FAULTS_FIGURES"];
  if (file === undefined) process.stdout.write(line);
  else appendFileSync(file, line);
}
