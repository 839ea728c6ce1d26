import type { Job, JobMail } from "../../model/job.js";
import { runMail } from "../../model/run-mail.js";
import { isAlarming, type RunRecord } from "../../model/run-record.js";
import { errorMessage } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import { withTimeLimit } from "../time-limit.js";
import { runProgram } from "./hooks.js";

const ANSWER_MS = 10_000;
/** Before the second and the third try. */
const PAUSES_MS = [1000, 10_000];
const MAIL_MS = 60_000;

/** `isBrief`: the agent may be about to end. A fired signal ends it at once. */
export interface ReportOptions {
  readonly isBrief: boolean;
  readonly signal?: AbortSignal;
}

/** Tells of a run that has ended; resolves with what could not be delivered. Never fails. */
export async function sendReports(
  context: ServiceContext,
  { name, report }: Job,
  record: RunRecord,
  { isBrief, signal = new AbortController().signal }: ReportOptions,
): Promise<readonly string[]> {
  const { webhook, mail } = report ?? {};
  const failures = await Promise.all([
    webhook === undefined ? undefined : post(context, webhook, record, isBrief ? [] : PAUSES_MS, signal),
    mail === undefined ? undefined : send(context, mail, record, isBrief ? ANSWER_MS : MAIL_MS, signal),
  ]);
  const notes = failures.filter((failure) => failure !== undefined);
  for (const note of notes) context.log.warn({ job: name, run: record.id }, note);
  return notes;
}

async function post(
  context: ServiceContext,
  url: string,
  record: RunRecord,
  pausesMs: readonly number[],
  signal: AbortSignal,
): Promise<string | undefined> {
  const { clock, jobs, webhooks } = context;
  let why = "the agent ended";
  for (const pauseMs of [0, ...pausesMs]) {
    // Only the signal ends a sleep early.
    if (pauseMs > 0) await clock.sleep(pauseMs, signal).catch(() => undefined);
    if (signal.aborted) break;
    try {
      await withTimeLimit(clock, ANSWER_MS, async (limit) => {
        const json = await jobs.toJson(record);
        await webhooks.post(url, json, AbortSignal.any([limit, signal]));
      });
      return undefined;
    } catch (error) {
      why = errorMessage(error);
    }
  }
  return `the webhook at ${new URL(url).host} was not told of the run: ${why}`;
}

async function send(
  context: ServiceContext,
  mail: JobMail,
  record: RunRecord,
  limitMs: number,
  signal: AbortSignal,
): Promise<string | undefined> {
  if (mail.on === "failure" && !isAlarming(record)) return undefined;
  const program = { command: mail.command, input: runMail(record, mail) };
  const { failure, output } = await runProgram(context, program, limitMs, signal);
  if (failure === undefined) return undefined;
  context.log.warn({ job: record.job, run: record.id, output }, "The mail program has failed");
  return `the mail to ${mail.to.join(", ")} was not sent (${mail.command[0] ?? ""}): ${failure}`;
}
