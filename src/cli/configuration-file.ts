import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { FleeceError } from "../shared/errors.js";

export const SYSTEM_CONFIG = "/etc/fleece/fleece.yaml";

/**
 * `--config`, else $FLEECE_CONFIG, else ./fleece.yaml if it is there, else the system's. Fails with CONFIG_NOT_FOUND if nothing
 * is named and neither is there; whether a named one can be read is for the reader.
 */
export function findConfiguration(
  option: string | undefined,
  { env, cwd }: { readonly env: Readonly<Record<string, string | undefined>>; readonly cwd: string },
): string {
  const named = option ?? env["FLEECE_CONFIG"];
  if (named !== undefined && named !== "") return resolve(cwd, named);
  const here = resolve(cwd, "fleece.yaml");
  const found = [here, SYSTEM_CONFIG].find((path) => existsSync(path));
  if (found !== undefined) return found;
  throw new FleeceError(
    "CONFIG_NOT_FOUND",
    `Expected a configuration at ${here} or ${SYSTEM_CONFIG}, or one named by --config or $FLEECE_CONFIG; found none`,
  );
}
