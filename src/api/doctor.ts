import type { Finding as ServiceFinding, Severity } from "../model/finding.js";
import { severityOf } from "../model/finding.js";
import type { ServiceContext } from "../services/context.js";
import type { PreflightReport } from "../services/preflight.js";
import { preflight } from "../services/preflight.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type { DoctorReport, Finding } from "./messages.js";

export async function doctorHandler(
  context: ServiceContext,
  { domain, repository }: CallRequest<"Domains.Inspect">,
  { signal }: CallOptions,
): Promise<DoctorReport> {
  const report = await preflight(context, {
    domain,
    ...(repository === undefined ? {} : { repository }),
    ...(signal === undefined ? {} : { signal }),
  });
  return doctorMessage(report);
}

const SEVERITIES = {
  blocker: "BLOCKER",
  warning: "WARNING",
  note: "NOTE",
  ok: "OK",
} as const satisfies Record<Severity, Finding["severity"]>;

const LEVELS = { full: "FULL", incremental: "INCREMENTAL" } as const;

export function doctorMessage({
  domain,
  repository,
  ready,
  decision,
  findings,
}: PreflightReport): DoctorReport {
  const order = Object.values<Finding["severity"]>(SEVERITIES);
  return {
    domain,
    repository,
    ready,
    nextLevel: decision && LEVELS[decision.level],
    nextReason: decision?.reason,
    findings: findings
      .map(findingMessage)
      .toSorted((a, b) => order.indexOf(a.severity) - order.indexOf(b.severity)),
  };
}

function findingMessage(finding: ServiceFinding): Finding {
  const { code, subject, found, advice } = finding;
  const errorCode = "errorCode" in finding ? finding.errorCode : undefined;
  return { code, severity: SEVERITIES[severityOf(finding)], disk: subject.disk, found, advice, errorCode };
}
