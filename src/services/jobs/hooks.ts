import type { Job, JobHook } from "../../model/job.js";
import type { DomainRun, RunRecord } from "../../model/run-record.js";
import type { Program, ProgramEnd } from "../../ports/program-runner.js";
import type { ServiceContext } from "../context.js";
import { withTimeLimit } from "../time-limit.js";

/** Whose hooks they are. */
export interface HookPlace {
  readonly record: RunRecord;
  /** As it is now, or will be at once. */
  readonly part: DomainRun;
}

export interface RanHooks {
  /** Of those that failed. */
  readonly notes: readonly string[];
  /** One of those failed whose failure stops. */
  readonly stop: boolean;
}

/** Runs the hooks of a moment, one after the other. A fired signal ends them, as `mostMs` does each. Never fails. */
export async function runHooks(
  context: ServiceContext,
  { hooks }: Job,
  when: JobHook["when"],
  place: HookPlace,
  signal?: AbortSignal,
  mostMs = Infinity,
): Promise<RanHooks> {
  const { log } = context;
  const notes: string[] = [];
  for (const { command, timeoutMs, onFailure } of hooks.filter((hook) => hook.when === when)) {
    const env = factsOf(when, place);
    const limitMs = Math.min(timeoutMs, mostMs);
    const { failure, output } = await runProgram(context, { command, env }, limitMs, signal);
    const { job, run, domain } = { ...place.record, run: place.record.id, ...place.part };
    const facts = { job, run, domain, command, output };
    if (failure === undefined) {
      log.info(facts, `Hook ${when} the backup has ended`);
      continue;
    }
    log.warn(facts, `Hook ${when} the backup has failed: ${failure}`);
    notes.push(`hook ${when} the backup failed (${command[0] ?? ""}): ${failure}`);
    if (onFailure === "stop") return { notes, stop: true };
  }
  return { notes, stop: false };
}

/** Kills it after `limitMs`. Never fails. */
export function runProgram(
  { clock, programs }: ServiceContext,
  program: Program,
  limitMs: number,
  signal?: AbortSignal,
): Promise<ProgramEnd> {
  return withTimeLimit(clock, limitMs, (limit) =>
    programs.run(program, signal === undefined ? limit : AbortSignal.any([limit, signal])),
  );
}

function factsOf(when: JobHook["when"], { record, part }: HookPlace): Readonly<Record<string, string>> {
  return {
    FLEECE_HOOK: when,
    FLEECE_JOB: record.job,
    FLEECE_RUN: record.id,
    FLEECE_DOMAIN: part.domain,
    FLEECE_REPOSITORY: record.repository,
    FLEECE_RESULT: when === "before" ? "" : part.state,
    FLEECE_BACKUP: part.backup?.id ?? "",
    FLEECE_LEVEL: part.backup?.manifest.level ?? "",
    FLEECE_ERROR_CODE: part.error?.code ?? "",
    FLEECE_ERROR: part.error?.message ?? "",
  };
}
