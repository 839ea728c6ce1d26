import type { Blocker, Finding } from "./finding.js";
import type { RevertJournal } from "./operation.js";
import type { DomainState } from "./snapshot-plan.js";
import { operationOfNode } from "./snapshot-plan.js";
import type { Trouble } from "./place-findings.js";

/** What unfinished operations say, ours and those of others. */

/** An operation in the journal that no process works on, as a look finds it. */
export type FoundOperation = {
  readonly id: string;
  readonly startedAtMs: number;
} & (
  | { readonly kind: "backup"; readonly backupId: string; readonly published: boolean }
  | { readonly kind: "restore" | "copy" | "boot-test"; readonly backupId: string }
  | { readonly kind: "unfinished-revert"; readonly name: string; readonly phase: RevertJournal["phase"] }
  | { readonly kind: "unfinished-snapshot"; readonly name: string }
  | { readonly kind: "unfinished-domain-snapshot"; readonly name: string; readonly work: SnapshotWork }
  | { readonly kind: "expired-snapshot"; readonly name: string; readonly leaseUntilMs: number }
  | { readonly kind: "broken-snapshot"; readonly name: string; readonly why: string }
  | {
      readonly kind: "open-snapshot";
      readonly name: string;
      readonly leaseUntilMs: number;
      readonly targets: readonly string[];
    }
);

/** What was done to a domain snapshot: words, and what becomes of it. */
const SNAPSHOT_WORK = {
  create: [
    "The creation of",
    "The next command undoes it, or completes it if the guest uses the overlays already; a guest that it has stopped goes on at once",
  ],
  delete: [
    "The deletion of",
    "The next command puts the disks in order; then repeat the deletion, since the snapshot may have lost content",
  ],
  clone: ["The cloning of", "The next command removes its unfinished files"],
  internal: [
    "Work inside the images for",
    "The next command completes it, or removes the internal snapshot from all images",
  ],
} as const;

const REVERT_ADVICE: Readonly<Record<RevertJournal["phase"], string>> = {
  preparing: "The next command undoes it, and the domain goes on as before",
  quitting:
    "The next command starts the domain anew on its present disks; what its guest had in memory is lost",
  switched: "The next command finishes it",
};

export type SnapshotWork = keyof typeof SNAPSHOT_WORK;

/** Those whose filters need no finding of their own: they are undone before the next backup, or hold the disk openly. */
export function explains({ kind }: FoundOperation): boolean {
  return kind !== "broken-snapshot";
}

export function operationFindings(domain: string, operations: readonly FoundOperation[]): readonly Finding[] {
  return operations.flatMap((operation) => oneOperation(domain, operation));
}

function oneOperation(domain: string, operation: FoundOperation): readonly Finding[] {
  const subject = { domain };
  const since = `since ${timeText(operation.startedAtMs)}`;
  switch (operation.kind) {
    case "backup": {
      const found = `Backup ${operation.backupId} of domain ${domain} was interrupted; it has waited ${since}`;
      const advice = operation.published
        ? "The next command tidies up; the backup is complete, and its checkpoint stays"
        : "The next command removes what it left, its checkpoint included; no change is lost";
      return [{ code: "UNFINISHED_OPERATION", subject, found, advice }];
    }
    case "restore":
    case "copy":
    case "boot-test": {
      const what = operation.kind === "boot-test" ? "boot test" : operation.kind;
      const found = `A ${what} of backup ${operation.backupId} was interrupted; it has waited ${since}`;
      return [
        {
          code: "UNFINISHED_OPERATION",
          subject,
          found,
          advice: "The next command removes its unfinished files",
        },
      ];
    }
    case "unfinished-revert": {
      const found = `A revert to domain snapshot ${operation.name} was interrupted; it has waited ${since}`;
      const advice = REVERT_ADVICE[operation.phase];
      return [{ code: "UNFINISHED_OPERATION", subject, found, advice }];
    }
    case "unfinished-snapshot": {
      const found = `Making or ending block snapshot ${operation.name} was interrupted; it has waited ${since}`;
      return [
        {
          code: "UNFINISHED_OPERATION",
          subject,
          found,
          advice: "The next command removes what is left of it",
        },
      ];
    }
    case "unfinished-domain-snapshot": {
      const [work, advice] = SNAPSHOT_WORK[operation.work];
      const found = `${work} domain snapshot ${operation.name} was interrupted; it has waited ${since}`;
      return [{ code: "UNFINISHED_OPERATION", subject, found, advice }];
    }
    case "expired-snapshot": {
      const found = `The lease of block snapshot ${operation.name} ended at ${timeText(operation.leaseUntilMs)}`;
      const advice = "The next command ends it as failed and merges its checkpoint away; no change is lost";
      return [{ code: "SNAPSHOT_EXPIRED", subject, found, advice }];
    }
    case "broken-snapshot": {
      const found = `Block snapshot ${operation.name} of domain ${domain} has lost its moment: ${operation.why}`;
      return [
        { code: "SNAPSHOT_BROKEN", subject, found, advice: "What is read from it does not count; delete it" },
      ];
    }
    case "open-snapshot":
      return operation.targets.map((target) => snapshotHolds(domain, target, operation));
  }
}

export function snapshotHolds(
  domain: string,
  disk: string,
  { name, leaseUntilMs }: { readonly name: string; readonly leaseUntilMs: number },
): Blocker {
  return {
    code: "SNAPSHOT_OPEN",
    errorCode: "DOMAIN_BUSY",
    subject: { domain, disk },
    found: `Disk ${disk} of domain ${domain} is held by block snapshot ${name} until that is deleted or its lease ends (${timeText(leaseUntilMs)})`,
    advice: `Wait for its consumer, or delete it with block-snapshot delete ${domain} ${name}`,
  };
}

/** Nodes with our mark that belong to no operation of this state directory. */
export function foreignAgent(state: DomainState, operationIds: ReadonlySet<string>): readonly Finding[] {
  const { domain, ourNodes = [] } = state;
  const strangers = ourNodes.filter((node) => !operationIds.has(operationOfNode(node) ?? ""));
  if (strangers.length === 0) return [];
  return [
    {
      code: "FOREIGN_AGENT",
      subject: { domain },
      found: `The QEMU of domain ${domain} has nodes of a fleece whose journal is not in this state directory: ${strangers.join(", ")}`,
      advice:
        "Another fleece with another stateDir works on the domain, or that directory is lost: use one stateDir per domain; nodes whose journal is lost go when the domain is restarted",
    },
  ];
}

export function domainTrouble(domain: string, { code, message }: Trouble, monitorInUse: boolean): Blocker {
  const subject = { domain };
  const common = { errorCode: code, subject, found: message };
  if (code === "DOMAIN_BUSY") {
    return {
      ...common,
      code,
      advice: "Wait until it has ended; nothing else can be told of the domain meanwhile",
    };
  }
  if (monitorInUse) {
    const advice =
      "A QMP socket serves one client at a time: end the other one, or give QEMU a socket for fleece alone";
    return { ...common, code: "MONITOR_IN_USE", advice };
  }
  if (code === "DOMAIN_UNREACHABLE") {
    const advice = "Check the qmp path and QEMU; to back the domain up while it is off, configure its disks";
    return { ...common, code, advice };
  }
  const advice = "Correct what the sentence says; a backup would be refused with the same words";
  return { ...common, code: "DOMAIN_UNREADABLE", advice };
}

function timeText(timeMs: number): string {
  return new Date(timeMs).toISOString();
}
