/** Faults of QEMU versions that matter to backups: data for the rules of domain-findings.ts. */
export interface KnownQemuIssue {
  readonly code: "DISK_IOTHREAD" | "QEMU_BLOCK_STATUS" | "QEMU_CBW_TIMEOUT";
  /** The first version that has it, as far as is known, and the first that does not. */
  readonly since: string;
  readonly fixed: string;
  /** What must be so for it to matter, besides the version. */
  readonly condition: "a running domain" | "a disk in an iothread";
  readonly consequence: string;
  /** What fleece does about it, so that it does no harm. */
  readonly handling: string;
}

export const OLDEST_QEMU = "7.2";

export const KNOWN_QEMU_ISSUES: readonly KnownQemuIssue[] = [
  {
    code: "DISK_IOTHREAD",
    since: "7.2",
    fixed: "9.0",
    condition: "a disk in an iothread",
    consequence: "aborts the virtual machine when an NBD client disconnects from such a disk",
    handling:
      "Exports of the domain are staged: QEMU copies into a storage daemon, which readers connect to; nothing to do",
  },
  {
    code: "QEMU_BLOCK_STATUS",
    since: "7.0",
    fixed: "8.0",
    condition: "a running domain",
    consequence: "reports content as zero that the guest has zeroed or discarded since the frozen moment",
    handling: "Backups read the scratch image over the disk, where the status is right; nothing to do",
  },
  {
    code: "QEMU_CBW_TIMEOUT",
    since: "7.1",
    fixed: "9.1",
    condition: "a running domain",
    consequence: "miscounts the time that a guest's write may wait for scratch space, from 5 seconds on",
    handling: "Backups set at most 4 seconds, which are true; nothing to do",
  },
];

/** Whether the version (`7.2.22`) is at least the other (`7.2`), part by part. */
export function isAtLeast(version: string, other: string): boolean {
  const [ours, theirs] = [version, other].map((text) => text.split(".").map(Number));
  const parts = theirs?.map((part, index) => (ours?.[index] ?? 0) - part) ?? [];
  return (parts.find((difference) => difference !== 0) ?? 0) >= 0;
}

/** The largest number of seconds that is what it says in a QEMU with QEMU_CBW_TIMEOUT: 5 become 0.7, and 0 means for ever. */
const TRUE_CBW_TIMEOUT_SECONDS = 4;

/** What to set so that a guest's write waits for scratch space as long as wanted, or as long as can be had. */
export function cbwTimeoutSeconds(qemuVersion: string, wantedMs: number): number {
  const wanted = wantedMs / 1000;
  const overflows = issuesOf(qemuVersion, "a running domain").some(({ code }) => code === "QEMU_CBW_TIMEOUT");
  return overflows ? Math.min(wanted, TRUE_CBW_TIMEOUT_SECONDS) : wanted;
}

export function issuesOf(
  qemuVersion: string,
  condition: KnownQemuIssue["condition"],
): readonly KnownQemuIssue[] {
  return KNOWN_QEMU_ISSUES.filter(
    (issue) =>
      issue.condition === condition &&
      isAtLeast(qemuVersion, issue.since) &&
      !isAtLeast(qemuVersion, issue.fixed),
  );
}
