import type { Command } from "@commander-js/extra-typings";
import { bootTestDone } from "./backup-view.js";
import type { RunAction } from "./session.js";

/** Proves a backup by booting it. */
export function addBootTestCommand(group: Command, run: RunAction): void {
  group
    .command("boot-test")
    .summary("boot a throw-away machine on a backup")
    .description(
      "Boot a throw-away machine on the disks of a backup, without a network, and wait for its sign of life: what the " +
        "configuration says (bootTest). What the guest writes is thrown away. In place of an id, --domain takes the newest " +
        "intact backup of a domain.",
    )
    .argument("[id]", "id of the backup")
    .option("--domain <name>", "the newest intact backup of this domain")
    .action((id = "", { domain }) =>
      run(async ({ answer, api, progress, signal }) => {
        const message = await api.call(
          "Backups.BootTest",
          { id, domain },
          { signal, onProgress: progress.show },
        );
        answer("BootTest", message, bootTestDone);
      }),
    );
}
