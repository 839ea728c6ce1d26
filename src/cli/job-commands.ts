import type { Command } from "@commander-js/extra-typings";
import type { JobRun } from "../api/messages.js";
import { FleeceError } from "../shared/errors.js";
import { everyPage } from "./every-page.js";
import { jobHistory, jobList, runDetails } from "./job-view.js";
import { runReport } from "./run-report.js";
import type { RunAction } from "./session.js";
import { statusTable } from "./status-view.js";

const JOB = ["<job>", "name of the job in the configuration"] as const;

export function addJobCommands(group: Command, run: RunAction): void {
  group
    .command("list")
    .summary("list the jobs and when they run next")
    .description(
      "List the jobs of the configuration with the next five runs of each, and how the last one ended.",
    )
    .action(() =>
      run(
        async ({ answer, api, signal, terminal }) => {
          const jobs = await everyPage(
            (paging) => api.call("Jobs.List", paging, { signal }),
            (page) => page.jobs,
          );
          answer("ListJobsResponse", { jobs }, (list) => jobList(list, terminal));
        },
        { changeNothing: true },
      ),
    );

  group
    .command("run")
    .summary("run a job now")
    .description(
      "Run a job now, whatever its schedule says: each domain is tried once. Fails if a domain is left without its backup; " +
        "the answer says why.",
    )
    .argument(...JOB)
    .action((job) =>
      run(async ({ answer, api, progress, signal, terminal }) => {
        const message = await api.call("Jobs.Run", { job }, { signal, onProgress: progress.show });
        answer("JobRun", message, (done) => runDetails(done, terminal));
        requireSuccess(message);
      }),
    );

  group
    .command("cancel")
    .summary("end a run of a job")
    .description("End a run of a job. Its backups that are complete stay; what is under way is undone.")
    .argument(...JOB)
    .action((job) =>
      run(async ({ answer, api, signal, terminal }) => {
        const message = await api.call("Jobs.Cancel", { job }, { signal });
        answer("JobRun", message, (done) => runDetails(done, terminal));
      }),
    );

  group
    .command("history")
    .summary("list the runs of jobs")
    .description("List the runs of all jobs, or of one, newest first, and why any of them has not succeeded.")
    .argument("[job]", "only runs of this job")
    .option("--last", "show the newest run alone, with each disk")
    .action((job, { last }) =>
      run(
        async ({ answer, api, signal, terminal }) => {
          if (last === true) {
            const { runs } = await api.call("Jobs.History", { job, pageSize: 1, pageToken: "" }, { signal });
            answer("JobHistoryResponse", { runs }, () => runs.map(runReport).join("") || "No runs\n");
            return;
          }
          const runs = await everyPage(
            (paging) => api.call("Jobs.History", { job, ...paging }, { signal }),
            (page) => page.runs,
          );
          answer("JobHistoryResponse", { runs }, (history) => jobHistory(history, terminal));
        },
        { changeNothing: true },
      ),
    );
}

export function describeStatusCommand(command: Command, run: RunAction): void {
  command
    .summary("show how each domain is doing")
    .description(
      "Show on one screen each domain with the age of its last good backup, its next run, and what its last run by a job came to.",
    )
    .action(() =>
      run(
        async ({ answer, api, signal, terminal }) => {
          const message = await api.call("Jobs.Status", {}, { signal });
          answer("Status", message, (status) => statusTable(status, Date.now(), terminal));
        },
        { changeNothing: true },
      ),
    );
}

function requireSuccess({ id, job, state, error }: JobRun): void {
  if (state === "COMPLETE" || state === "COMPLETE_WITH_NOTES") return;
  throw new FleeceError(
    "JOB_FAILED",
    `Run ${id} of job ${job} is ${state.toLowerCase()}: ${error?.message ?? ""}`,
    {
      facts: { job, run: id, ...(error === null ? {} : { code: error.code }) },
    },
  );
}
