import { Option, type Command } from "@commander-js/extra-typings";
import {
  blockSnapshotCreated,
  blockSnapshotDeleted,
  blockSnapshotDetails,
  blockSnapshotList,
  blockSnapshotRenewed,
} from "./block-snapshot-view.js";
import { diskOption } from "./disk-option.js";
import { everyPage } from "./every-page.js";
import { durationOption } from "./duration-option.js";
import { NO_QUIESCE_OPTION, QUIESCE_OPTION } from "./quiesce-option.js";
import type { RunAction } from "./session.js";
import { readXmlFile } from "./xml-option.js";

const DOMAIN = ["<domain>", "name of the domain in the configuration"] as const;
const NAME = ["<name>", "name of the block snapshot"] as const;
const DEFAULT_LEASE_MS = 30 * 60_000;

export function addBlockSnapshotCommands(group: Command, run: RunAction): void {
  addCreate(group, run);

  group
    .command("list")
    .summary("list the open block snapshots of a domain")
    .description("List the open block snapshots of a domain, oldest first.")
    .argument(...DOMAIN)
    .action((domain) =>
      run(async ({ answer, api, signal, terminal }) => {
        const snapshots = await everyPage(
          (paging) => api.call("BlockSnapshots.List", { domain, ...paging }, { signal }),
          (page) => page.snapshots,
        );
        answer("ListBlockSnapshotsResponse", { snapshots }, (list) => blockSnapshotList(list, terminal));
      }),
    );

  group
    .command("show")
    .summary("show a block snapshot")
    .description("Show a block snapshot: its moment, lease, disks and exports.")
    .argument(...DOMAIN)
    .argument(...NAME)
    .action((domain, name) =>
      run(async ({ answer, api, signal, terminal }) => {
        const message = await api.call("BlockSnapshots.Get", { domain, name }, { signal });
        answer("BlockSnapshot", message, (snapshot) => blockSnapshotDetails(snapshot, terminal));
      }),
    );

  group
    .command("dumpxml")
    .summary("print a block snapshot as XML")
    .description("Print a block snapshot as <domainblocksnapshot>, which `create --xml` reads.")
    .argument(...DOMAIN)
    .argument(...NAME)
    .option("--rfc", "write <fleece> for <scratch>, as the RFC has it")
    .action((domain, name, { rfc }) =>
      run(async ({ answer, api, signal }) => {
        const request = { domain, name, rfcForm: rfc === true };
        const message = await api.call("BlockSnapshots.GetXml", request, { signal });
        answer("XmlDocument", message, ({ xml }) => xml);
      }),
    );

  group
    .command("renew")
    .summary("start the lease of a block snapshot anew")
    .description("Start the lease of a block snapshot anew, with the length it had or another.")
    .argument(...DOMAIN)
    .argument(...NAME)
    .addOption(
      leaseOption("how long it lives from now on, for example 90s, 30m, 2h or 1d (default: as it was)"),
    )
    .action((domain, name, { lease: leaseMs }) =>
      run(async ({ answer, api, signal }) => {
        const message = await api.call("BlockSnapshots.Renew", { domain, name, leaseMs }, { signal });
        answer("BlockSnapshot", message, blockSnapshotRenewed);
      }),
    );

  addDelete(group, run);
}

function addCreate(group: Command, run: RunAction): void {
  group
    .command("create")
    .summary("freeze a moment of a domain's disks")
    .description(
      "Freeze one moment of a domain's disks, running or not, for other software to read (see `export start`). The " +
        "snapshot lives on after this command, until it is deleted or its lease ends.",
    )
    .argument(...DOMAIN)
    .option("--name <name>", "name of the snapshot (default: one is made up)")
    .addOption(diskOption("freeze this disk"))
    .option(
      "--checkpoint [name]",
      "track changes from this very moment on, in a checkpoint of this name (default: that of the snapshot)",
    )
    .addOption(
      leaseOption("how long it lives unless it is renewed, for example 90s, 30m, 2h or 1d").default(
        DEFAULT_LEASE_MS,
        "30m",
      ),
    )
    .addOption(QUIESCE_OPTION)
    .addOption(NO_QUIESCE_OPTION)
    .option("--xml <file>", "take name, disks and scratch files from this <domainblocksnapshot>")
    .action((domain, { name, disk: disks, checkpoint, lease: leaseMs, quiesce, xml: file }) =>
      run(async ({ absolutePath, api, answer, signal, terminal }) => {
        const xml = file === undefined ? undefined : await readXmlFile(absolutePath(file));
        const moment = { checkpoint: checkpointRequest(checkpoint), leaseMs, quiesce };
        const request = { domain, name, disks, ...moment, xml };
        const message = await api.call("BlockSnapshots.Create", request, { signal });
        answer("BlockSnapshot", message, (snapshot) => blockSnapshotCreated(snapshot, terminal));
      }),
    );
}

function addDelete(group: Command, run: RunAction): void {
  group
    .command("delete")
    .summary("end a block snapshot, with success or as failed")
    .description(
      "End a block snapshot and its exports. Without --failed its consumer says that everything was read and is safe: " +
        "the checkpoint that was made with it stays. A snapshot that was not intact ends as failed, and so does the command.",
    )
    .argument(...DOMAIN)
    .argument(...NAME)
    .option("--failed", "the consumer failed: merge the snapshot's checkpoint into the one before it")
    .action((domain, name, { failed }) =>
      run(async ({ answer, api, signal }) => {
        const request = { domain, name, failed: failed === true };
        const message = await api.call("BlockSnapshots.Delete", request, { signal });
        answer("BlockSnapshot", message, (snapshot) => blockSnapshotDeleted(snapshot, request.failed));
      }),
    );
}

function leaseOption(what: string) {
  return new Option("--lease <duration>", what).argParser((text: string) => durationOption(text));
}

function checkpointRequest(option: string | true | undefined): { readonly name?: string } | undefined {
  if (option === undefined) return undefined;
  return option === true ? {} : { name: option };
}
