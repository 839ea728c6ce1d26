import { rm, writeFile } from "node:fs/promises";
import { expect } from "vitest";
import { listExports } from "nbd-client-ts";
import { BoundProcess } from "../../../support/bound-process.js";
import { debianTool } from "../../../support/debian-tool.js";
import { untilTestEnds } from "../../../support/lifetime.js";
import type { Place } from "./places.js";

export interface NbdServerSettings {
  readonly place: Place;
  /** What it listens on, for a client that may enter. */
  readonly uri: string;
  readonly image: string;
  readonly configPath: string;
  readonly readOnly?: boolean;
  /** A directory of certificates; TLS is then required. */
  readonly certificates?: string;
}

/** Debian's nbd-server with the export `disk`, until the test ends. It ends by itself when one client has been in it. */
export async function nbdServer(skip: (note: string) => void, settings: NbdServerSettings): Promise<void> {
  const program = await debianTool("nbd-server");
  if (program === undefined) skip("nbd-server is neither installed nor to be had from the distribution");
  const { place, uri, image, configPath, certificates } = settings;
  const where =
    "path" in place.address
      ? [`unixsock = ${place.address.path}`]
      : [`listenaddr = ${place.address.host}`, `port = ${place.address.port}`];
  const tls = certificates === undefined ? [] : tlsSettings(certificates);
  const access = settings.readOnly === true ? ["readonly = true"] : ["trim = true"];
  const exported = ["[disk]", `exportname = ${image}`, "flush = true", "fua = true", ...access];
  await writeFile(
    configPath,
    ["[generic]", ...where, "allowlist = true", ...tls, ...exported, ""].join("\n"),
  );
  if ("path" in place.address) await rm(place.address.path, { force: true });
  // In the foreground it serves one client after another until one has entered, and dies of one that just connects:
  // the first listing waits for it.
  const process = untilTestEnds(await BoundProcess.start(program ?? "", ["-d", "-C", configPath]));
  await expect
    .poll(() => process.running && listExports(uri).catch(() => []), { timeout: 20_000 })
    .toEqual([{ name: "disk", description: "" }]);
}

function tlsSettings(certificates: string): string[] {
  const pki = (file: string) => `${certificates}/${file}`;
  const files = [`certfile = ${pki("server-cert.pem")}`, `keyfile = ${pki("server-key.pem")}`];
  return [...files, `cacertfile = ${pki("ca-cert.pem")}`, "force_tls = true"];
}
