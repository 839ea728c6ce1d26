import type { Command } from "@commander-js/extra-typings";
import { FleeceError } from "../shared/errors.js";
import { doctorReport } from "./doctor-view.js";
import { plural } from "./layout.js";
import type { RunAction } from "./session.js";

export function describeDoctorCommand(command: Command, run: RunAction): void {
  command
    .summary("look at a domain before its next backup")
    .description(
      "Say what would keep a domain's next backup from running or from being incremental, and what the backup will do about it. " +
        "Changes nothing. Fails if the backup would be refused.",
    )
    .argument("<domain>", "name of the domain in the configuration")
    .option("--repository <name>", "where the backup would go (default: the first of the configuration)")
    .action((domain, { repository }) =>
      run(
        async ({ answer, api, signal }) => {
          const report = await api.call("Domains.Inspect", { domain, repository }, { signal });
          answer("DoctorReport", report, doctorReport);
          if (report.ready) return;
          const blockers = report.findings.filter(({ severity }) => severity === "BLOCKER");
          throw new FleeceError(
            "NOT_READY",
            `The next backup of domain ${domain} would be refused: ${plural(blockers.length, "blocker")}`,
            { facts: { domain, blockers: blockers.map(({ code }) => code) } },
          );
        },
        { changeNothing: true },
      ),
    );
}
