import { checkName } from "../model/names.js";
import type { DiskState, DomainState } from "../model/snapshot-plan.js";
import { FleeceError } from "../shared/errors.js";

/**
 * The disks that an operation is about: those asked for, or all. Fails with DISK_NOT_FOUND for one that the domain does
 * not have, and with the obstacle's code for one that cannot be frozen; a disk is never left out silently.
 */
export function chooseDisks(state: DomainState, targets?: readonly string[]): readonly DiskState[] {
  const chosen =
    targets === undefined ? state.disks : [...new Set(targets)].map((target) => find(state, target));
  if (chosen.length === 0) {
    throw new FleeceError("DISK_NOT_FOUND", `Domain ${state.domain} has no writable, non-removable disk`);
  }
  for (const { target, obstacle } of chosen) {
    if (obstacle === undefined) continue;
    throw new FleeceError(
      obstacle.code,
      `Disk ${target} of domain ${state.domain} cannot be frozen: ${obstacle.reason}`,
      {
        facts: { domain: state.domain, target },
      },
    );
  }
  return chosen;
}

function find(state: DomainState, target: string): DiskState {
  const disk = state.disks.find((listed) => listed.target === checkName("disk", target));
  if (disk !== undefined) return disk;
  const known = state.disks.map((listed) => listed.target).join(", ") || "none";
  throw new FleeceError("DISK_NOT_FOUND", `Domain ${state.domain} has no disk ${target}; it has ${known}`, {
    facts: { domain: state.domain, target },
  });
}
