import { type Command, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { restorationDone, servedBackup, verificationDone } from "./backup-view.js";
import { diskOption } from "./disk-option.js";
import { KEY_FILE_OPTION, REPOSITORY_OPTION, REPOSITORY_PATH_OPTION } from "./repository-path-option.js";
import { isNbdUri, restoreDiskOption } from "./restore-disk-option.js";
import type { RunAction } from "./session.js";

const ID = ["<id>", "id of the backup"] as const;
const FORMATS = { qcow2: "QCOW2", raw: "RAW" } as const;

/** Verifying, restoring and serving. */
export function addBackupReadCommands(group: Command, run: RunAction): void {
  addVerify(group, run);
  addRestore(group, run);
  addServe(group, run);
}

function addVerify(group: Command, run: RunAction): void {
  group
    .command("verify")
    .summary("prove that a backup is sound")
    .description(
      "Read a backup as a restore would, with all it is based on, and compare every block with its digest. " +
        "Ends with exit code 6 if there is damage.",
    )
    .argument(...ID)
    .addOption(diskOption("verify this disk"))
    .addOption(REPOSITORY_OPTION)
    .addOption(REPOSITORY_PATH_OPTION)
    .addOption(KEY_FILE_OPTION)
    .action((id, { disk: disks, repository, repositoryPath, keyFile }) =>
      run(
        async ({ answer, api, progress, signal }) => {
          const message = await api.call(
            "Backups.Verify",
            { id, disks, repository },
            { signal, onProgress: progress.show },
          );
          answer("Verification", message, verificationDone);
        },
        { repositoryPath, keyFile },
      ),
    );
}

function addRestore(group: Command, run: RunAction): void {
  group
    .command("restore")
    .summary("restore a backup to files, block devices or NBD exports")
    .description(
      "Restore a backup to one file per disk, <target>.qcow2 or <target>.raw, in a new directory, or each disk to a " +
        "place of its own. Every block is checked on the way; files appear only when all of it is there. In place of an " +
        "id, --domain takes the newest intact backup of a domain.",
    )
    .argument("[id]", ID[1])
    .option("--domain <name>", "the newest intact backup of this domain")
    .option(
      "--at <time>",
      "with --domain: the newest at or before this moment, as 2026-11-20 03:00 or RFC 3339",
    )
    .option("--repository <name>", "only backups in this repository")
    .option("--to <directory>", "the directory to create; it must not exist, its parent must")
    .addOption(restoreDiskOption())
    .addOption(
      new Option(
        "--format <format>",
        "format of the files (default: qcow2 if the disk was, else raw)",
      ).choices(["qcow2", "raw"] as const),
    )
    .addOption(REPOSITORY_PATH_OPTION)
    .addOption(KEY_FILE_OPTION)
    .action((id = "", { to, disk: chosen, format, repositoryPath, keyFile, ...newest }) => {
      const hasPlaces = chosen.length > 0 && chosen.every(({ place }) => place !== undefined);
      if (to === undefined && !hasPlaces) throw directoryMissing();
      return run(
        async ({ absolutePath, answer, api, progress, signal, terminal }) => {
          const places = chosen.flatMap(({ target, place }) => {
            if (place === undefined) return [];
            return [{ target, to: isNbdUri(place) ? place : absolutePath(place) }];
          });
          const request = {
            ...{ id, ...newest },
            disks: chosen.filter(({ place }) => place === undefined).map(({ target }) => target),
            ...{ places, directory: to === undefined ? "" : absolutePath(to) },
            format: format === undefined ? "FORMAT_UNSPECIFIED" : FORMATS[format],
          } as const;
          const message = await api.call("Backups.Restore", request, { signal, onProgress: progress.show });
          answer("Restoration", message, (restoration) => restorationDone(restoration, terminal));
        },
        { repositoryPath, keyFile },
      );
    });
}

function directoryMissing(): InvalidArgumentError {
  return new InvalidArgumentError("Expected --to DIRECTORY, or a place for each disk (--disk TARGET=PLACE)");
}

function addServe(group: Command, run: RunAction): void {
  group
    .command("serve")
    .summary("offer a backup read-only over NBD")
    .description(
      "Offer the disks of a backup read-only over NBD on a Unix socket, and print their URIs. Runs until it is " +
        "interrupted (SIGINT or SIGTERM).",
    )
    .argument(...ID)
    .option("--socket <path>", "the socket to create; it must not exist (default: a private one)")
    .addOption(diskOption("offer this disk"))
    .addOption(REPOSITORY_OPTION)
    .addOption(REPOSITORY_PATH_OPTION)
    .addOption(KEY_FILE_OPTION)
    .action((id, { socket, disk: disks, repository, repositoryPath, keyFile }) =>
      run(
        async ({ absolutePath, answer, api, signal, terminal }) => {
          const socketPath = socket === undefined ? undefined : absolutePath(socket);
          await api.call(
            "Backups.Serve",
            { id, disks, socketPath, repository },
            {
              signal,
              onServed: (served) =>
                answer("ServedBackup", served, (message) => servedBackup(message, terminal)),
            },
          );
        },
        { repositoryPath, keyFile },
      ),
    );
}
