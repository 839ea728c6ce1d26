import { readFileSync } from "node:fs";

/** From dist/cli and from src/cli alike. */
export function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  const content: unknown = JSON.parse(text);
  const known = typeof content === "object" && content !== null && "version" in content;
  return known && typeof content.version === "string" ? content.version : "unknown";
}
