import { existsSync } from "node:fs";
import { resolve } from "node:path";

export const SYSTEM_CONFIG = "/etc/fleece/fleece.yaml";

/** `--config`, else $FLEECE_CONFIG, else ./fleece.yaml if it is there, else the system's. */
export function findConfiguration(
  option: string | undefined,
  { env, cwd }: { readonly env: Readonly<Record<string, string | undefined>>; readonly cwd: string },
): string {
  const named = option ?? env["FLEECE_CONFIG"];
  if (named !== undefined && named !== "") return resolve(cwd, named);
  const here = resolve(cwd, "fleece.yaml");
  return existsSync(here) ? here : SYSTEM_CONFIG;
}
