import type { Command } from "@commander-js/extra-typings";
import { checkpointDeleted, checkpointDetails, checkpointList, checkpointTree } from "./checkpoint-view.js";
import { everyPage } from "./every-page.js";
import type { RunAction } from "./session.js";

const DOMAIN = ["<domain>", "name of the domain in the configuration"] as const;
const NAME = ["<name>", "name of the checkpoint"] as const;

export function addCheckpointCommands(group: Command, run: RunAction): void {
  group
    .command("list")
    .summary("list the checkpoints of a domain")
    .description("List the checkpoints of a domain, oldest first, as its disks hold them.")
    .argument(...DOMAIN)
    .option("--tree", "show which checkpoint follows which")
    .action((domain, { tree }) =>
      run(async ({ answer, api, signal, terminal }) => {
        const checkpoints = await everyPage(
          (paging) => api.call("Checkpoints.List", { domain, ...paging }, { signal }),
          (page) => page.checkpoints,
        );
        answer("ListCheckpointsResponse", { checkpoints }, (list) =>
          tree === true ? checkpointTree(list) : checkpointList(list, terminal),
        );
      }),
    );

  group
    .command("show")
    .summary("show a checkpoint and its bitmaps")
    .description("Show a checkpoint and the bitmap that each disk holds for it.")
    .argument(...DOMAIN)
    .argument(...NAME)
    .action((domain, name) =>
      run(async ({ answer, api, signal, terminal }) => {
        const message = await api.call("Checkpoints.Get", { domain, name }, { signal });
        answer("Checkpoint", message, (found) => checkpointDetails(found, terminal));
      }),
    );

  group
    .command("delete")
    .summary("delete a checkpoint without losing changes")
    .description(
      "Delete a checkpoint. Its changes are merged into the checkpoint before it, so that none is lost. " +
        "The next backup is based on one with an older checkpoint, or reads all and compares.",
    )
    .argument(...DOMAIN)
    .argument(...NAME)
    .action((domain, name) =>
      run(async ({ answer, api, signal }) => {
        const message = await api.call("Checkpoints.Delete", { domain, name }, { signal });
        answer("Checkpoint", message, checkpointDeleted);
      }),
    );
}
