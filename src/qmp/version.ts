/** QEMU's version as the greeting gives it; `package` is the distribution's suffix, or empty. */
export interface QmpVersion {
  readonly major: number;
  readonly minor: number;
  readonly micro: number;
  readonly package: string;
}

/**
 * Tells whether a version is at least `major.minor`. Prefer a probe (`query-qmp-schema`) where a feature shows in the
 * schema; the version is for repaired bugs, which do not.
 */
export function isVersionAtLeast(
  version: Pick<QmpVersion, "major" | "minor">,
  major: number,
  minor: number,
): boolean {
  return version.major > major || (version.major === major && version.minor >= minor);
}
