import { diskObstacle, missingDisk, noDisks, qemuTooOld } from "../model/domain-findings.js";
import { refusal } from "../model/finding.js";
import { checkName } from "../model/names.js";
import type { DiskState, DomainState } from "../model/snapshot-plan.js";
import { FleeceError } from "../shared/errors.js";

/**
 * The disks that an operation is about: those asked for, or all. Fails with DISK_NOT_FOUND for one that the domain does
 * not have, and with the blocker's code where a look (`fleece doctor`) would find one; a disk is never left out silently.
 */
export function chooseDisks(state: DomainState, targets?: readonly string[]): readonly DiskState[] {
  const missing = (state.missingDisks ?? []).filter(({ target }) => targets?.includes(target) ?? true);
  if (missing[0] !== undefined) throw refusal(missingDisk(state.domain, missing[0]));
  const chosen =
    targets === undefined ? state.disks : [...new Set(targets)].map((target) => find(state, target));
  const blockers = [
    qemuTooOld(state),
    noDisks({ ...state, disks: chosen }),
    ...chosen.map((disk) => diskObstacle(state.domain, disk)),
  ];
  const blocker = blockers.find((found) => found !== undefined);
  if (blocker !== undefined) throw refusal(blocker);
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
