import { readFile } from "node:fs/promises";
import { Option, type Command } from "@commander-js/extra-typings";
import type { CallRequest } from "../api/call-types.js";
import { checkSnapshotFile, snapshotNameIn } from "../api/domain-snapshots.js";
import { fileError } from "../shared/errors.js";
import { diskOption } from "./disk-option.js";
import {
  domainReverted,
  domainSnapshotCloned,
  domainSnapshotCreated,
  domainSnapshotDeleted,
  domainSnapshotDetails,
  domainSnapshotList,
  domainSnapshotTree,
  revertCostText,
} from "./domain-snapshot-view.js";
import { everyPage } from "./every-page.js";
import type { RunAction } from "./session.js";
import { sizeOption } from "./size-option.js";
import { readXmlFile } from "./xml-option.js";

const DOMAIN = ["<domain>", "name of the domain in the configuration"] as const;
const NAME = ["<name>", "name of the domain snapshot"] as const;

export function addDomainSnapshotCommands(group: Command, run: RunAction): void {
  addCreate(group, run);
  addReads(group, run);
  addRevert(group, run);

  group
    .command("delete")
    .summary("delete a domain snapshot")
    .description(
      "Delete a domain snapshot. What other snapshots and the domain need of it is merged into them, whether or not the " +
        "domain runs; one that clones need is refused.",
    )
    .argument(...DOMAIN)
    .argument(...NAME)
    .option(
      "--metadata",
      "only forget it: nothing is merged or removed; what is based on its files still needs them",
    )
    .action((domain, name, { metadata }) =>
      run(async ({ answer, api, progress, signal }) => {
        const request = { domain, name, metadataOnly: metadata === true };
        const options = { signal, onProgress: progress.show };
        const message = await api.call("DomainSnapshots.Delete", request, options);
        answer("DeletedDomainSnapshot", message, domainSnapshotDeleted);
      }),
    );

  group
    .command("clone")
    .summary("make overlays for another domain from a domain snapshot")
    .description(
      "Make overlays (and a copy of the memory) for another domain from a domain snapshot, any number of times. The snapshot " +
        "cannot be deleted as long as they are there.",
    )
    .argument(...DOMAIN)
    .argument(...NAME)
    .requiredOption("--to <directory>", "where to put them; must not exist")
    .action((domain, name, { to }) =>
      run(async ({ absolutePath, answer, api, progress, signal }) => {
        const request = { domain, name, directory: absolutePath(to) };
        const options = { signal, onProgress: progress.show };
        const message = await api.call("DomainSnapshots.Clone", request, options);
        answer("ClonedDomainSnapshot", message, domainSnapshotCloned);
      }),
    );
}

function addCreate(group: Command, run: RunAction): void {
  group
    .command("create")
    .summary("take a snapshot of a domain's memory and disks")
    .description(
      "Take a snapshot of a domain to which it can be reverted: disks and, of one that is not inactive, memory. Afterwards the " +
        "guest is as it was. A file in the form of xl, or <domainsnapshot>, may say the same as the options.",
    )
    .argument(...DOMAIN)
    .argument("[file]", "a snapshot file in the form of xl")
    .argument("[settings...]", "KEY=VALUE in place of what the file says")
    .option("--name <name>", "name of the snapshot (default: the moment in seconds since 1970)")
    .option("--description <text>", "what it is for")
    .option("--live", "let the guest run while its memory is saved")
    .addOption(new Option("--internal", "inside the qcow2 images").conflicts("external"))
    .addOption(new Option("--external", "in new files; the default").conflicts("internal"))
    .option("--disk-only", "without memory")
    .option("--memory <path>", "where memory goes: a new file, or a directory")
    .option("--directory <directory>", "where all new files go; must not exist")
    .addOption(diskOption("include this disk"))
    .option(
      "--lvm",
      "let LVM take the snapshots of disks that are raw logical volumes, instead of making overlays",
    )
    .addOption(
      new Option(
        "--lvm-size <size>",
        "space for old content of each volume that is not thin; once the guest has overwritten more, the snapshot is broken " +
          "(default: as much as it can need)",
      ).argParser(sizeOption),
    )
    .option("--quiesce", "freeze the guest's file systems; with --disk-only")
    .option("--xml <file>", "take what is wanted from this <domainsnapshot>")
    .action((domain, file, settings, options) =>
      run(async ({ absolutePath, answer, api, progress, signal, terminal }) => {
        const where = (path: string | undefined) => (path === undefined ? undefined : absolutePath(path));
        // A word that is a setting is no file: options may take the file's place.
        const isSetting = file?.includes("=") === true && !file.includes("/");
        const path = isSetting || file === undefined ? undefined : absolutePath(file);
        const text = path === undefined ? undefined : await readSnapshotFile(path);
        const words = isSetting ? [file, ...settings] : settings;
        checkSnapshotFile(text ?? "", path ?? "", words);
        const request: CallRequest<"DomainSnapshots.Create"> = {
          domain,
          name: options.name,
          description: options.description,
          kind:
            options.internal === true
              ? "INTERNAL"
              : options.external === true
                ? "EXTERNAL"
                : "KIND_UNSPECIFIED",
          live: options.live === true,
          diskOnly: options.diskOnly === true,
          memoryPath: where(options.memory),
          directory: where(options.directory),
          disks: options.disk,
          overlays: {},
          quiesce: options.quiesce === true,
          lvm: options.lvm === true,
          lvmReservedBytes: options.lvmSize,
          xml: options.xml === undefined ? undefined : await readXmlFile(absolutePath(options.xml)),
          file: text,
          settings: words,
          requestId: undefined,
        };
        const message = await api.call("DomainSnapshots.Create", request, {
          signal,
          onProgress: progress.show,
        });
        answer("DomainSnapshot", message, (snapshot) => domainSnapshotCreated(snapshot, terminal));
      }),
    );
}

function addReads(group: Command, run: RunAction): void {
  group
    .command("list")
    .summary("list the snapshots of a domain")
    .description(
      "List the snapshots of a domain, oldest first. A star marks the one that its present state descends from.",
    )
    .argument(...DOMAIN)
    .addOption(new Option("-l, --long", "all that show tells, one after the other").conflicts("tree"))
    .addOption(new Option("--tree", "as a tree").conflicts("long"))
    .action((domain, { long, tree }) =>
      run(async ({ answer, api, signal, terminal }) => {
        const snapshots = await everyPage(
          (paging) => api.call("DomainSnapshots.List", { domain, ...paging }, { signal }),
          (page) => page.snapshots,
        );
        answer("ListDomainSnapshotsResponse", { snapshots }, (list) =>
          tree === true
            ? domainSnapshotTree(list)
            : domainSnapshotList(list, { terminal, long: long === true }),
        );
      }),
    );

  group
    .command("show")
    .summary("show a domain snapshot")
    .description("Show a domain snapshot: its moment, state, memory and disks.")
    .argument(...DOMAIN)
    .argument(...NAME)
    .action((domain, name) =>
      run(async ({ answer, api, signal, terminal }) => {
        const message = await api.call("DomainSnapshots.Get", { domain, name }, { signal });
        answer("DomainSnapshot", message, (snapshot) => domainSnapshotDetails(snapshot, terminal));
      }),
    );

  group
    .command("dumpxml")
    .summary("print a domain snapshot as XML")
    .description("Print a domain snapshot as <domainsnapshot>.")
    .argument(...DOMAIN)
    .argument(...NAME)
    .action((domain, name) =>
      run(async ({ answer, api, signal }) => {
        const message = await api.call("DomainSnapshots.GetXml", { domain, name }, { signal });
        answer("XmlDocument", message, ({ xml }) => xml);
      }),
    );
}

function addRevert(group: Command, run: RunAction): void {
  group
    .command("revert")
    .summary("put a domain back to a snapshot")
    .description(
      "Put disks and memory of a domain back to a snapshot. The present state is kept as a snapshot of its own, unless " +
        "--force is given; what else a revert costs is said by --dry-run, and refused without --force.",
    )
    .argument(...DOMAIN)
    .argument("<name|file>", "its name, or the path (with a slash) of a snapshot file in the form of xl")
    .addOption(
      new Option("--running", "the domain runs afterwards, whatever it did then").conflicts("paused"),
    )
    .addOption(new Option("--paused", "the domain is paused afterwards").conflicts("running"))
    .option("--force", "accept what would be lost")
    .option(
      "--quit-first",
      "end the present QEMU before the new one starts, so that it can have the same ports; if that fails then, the guest is " +
        "started anew on its present disks, and what it had in memory is lost",
    )
    .addOption(new Option("--dry-run", "only say what it would cost").conflicts(["force"]))
    .action((domain, nameOrFile, { running, paused, force, quitFirst, dryRun }) =>
      run(async ({ absolutePath, answer, api, progress, signal }) => {
        const name = nameOrFile.includes("/") ? await nameIn(absolutePath(nameOrFile)) : nameOrFile;
        if (dryRun === true) {
          const cost = await api.call("DomainSnapshots.GetRevertCost", { domain, name }, { signal });
          answer("RevertCost", cost, revertCostText);
          return;
        }
        const to = running === true ? "RUNNING" : paused === true ? "PAUSED" : "STATE_UNSPECIFIED";
        const wishes = { force: force === true, quitFirst: quitFirst === true };
        const request = { domain, name, to, ...wishes } as const;
        const options = { signal, onProgress: progress.show };
        const message = await api.call("DomainSnapshots.Revert", request, options);
        answer("RevertedDomain", message, domainReverted);
      }),
    );
}

/** A path has a slash, a name has none. */
async function nameIn(file: string): Promise<string> {
  return snapshotNameIn(await readSnapshotFile(file), file);
}

async function readSnapshotFile(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    throw fileError(error, "read", file);
  }
}
