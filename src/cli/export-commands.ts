import { Option, type Command } from "@commander-js/extra-typings";
import { diskOption } from "./disk-option.js";
import { exportList, exportsStarted, exportsStopped } from "./export-view.js";
import type { RunAction } from "./session.js";
import { readXmlFile } from "./xml-option.js";

const DOMAIN = ["<domain>", "name of the domain in the configuration"] as const;
const SNAPSHOT = ["--snapshot <name>", "name of the block snapshot"] as const;

export function addExportCommands(group: Command, run: RunAction): void {
  group
    .command("start")
    .summary("offer a block snapshot over NBD")
    .description(
      "Offer the disks of a block snapshot read-only over NBD, and print their URIs: on a private Unix socket, or at an " +
        "address for remote readers. The exports live on after this command, until they are stopped or the snapshot ends.",
    )
    .argument(...DOMAIN)
    .option(...SNAPSHOT)
    .option(
      "--since <checkpoint>",
      "also offer what changed since this checkpoint, as the metadata context qemu:dirty-bitmap:since-<checkpoint>",
    )
    .addOption(diskOption("offer this disk"))
    .option(
      "--address <address>",
      "offer them at tcp:HOST:PORT, as the agent's configuration has it, or on a new socket unix:/path",
    )
    .addOption(
      new Option(
        "--client <name>",
        "who may read at a TCP address: a certificate's common name, or sha256:FINGERPRINT (may be repeated)",
      )
        .default([] as string[], "the certificate given with --agent")
        .argParser((client: string, before: string[]) => [...before, client]),
    )
    .option(
      "--xml <file>",
      "take snapshots, checkpoints, disks and the address from this <domainblockexport>",
    )
    .action((domain, { snapshot = "", since, disk: disks, xml: file, address, client: clients }, command) => {
      if (snapshot === "" && file === undefined) {
        command.error("error: required option '--snapshot <name>' or '--xml <file>' not specified");
      }
      return run(async ({ absolutePath, api, answer, signal, terminal }) => {
        const xml = file === undefined ? undefined : await readXmlFile(absolutePath(file));
        const request = { domain, snapshot, since, disks, xml, address, clients };
        const message = await api.call("BlockExports.Start", request, { signal });
        answer("StartBlockExportsResponse", message, (started) => exportsStarted(started, terminal));
      });
    });

  group
    .command("list")
    .summary("list the exports")
    .description("List the disks of block snapshots that are offered over NBD.")
    .argument("[domain]", "only exports of this domain")
    .action((domain) =>
      run(async ({ answer, api, signal, terminal }) => {
        const message = await api.call("BlockExports.List", { domain }, { signal });
        answer("ListBlockExportsResponse", message, (list) => exportList(list, terminal));
      }),
    );

  group
    .command("stop")
    .summary("end the exports of a block snapshot")
    .description(
      "End all exports of a block snapshot, whether or not clients are connected. The snapshot stays.",
    )
    .argument(...DOMAIN)
    .requiredOption(...SNAPSHOT)
    .action((domain, { snapshot }) =>
      run(async ({ answer, api, signal }) => {
        const message = await api.call("BlockExports.Stop", { domain, snapshot }, { signal });
        answer("StopBlockExportsResponse", message, (stopped) => exportsStopped(stopped, snapshot));
      }),
    );
}
