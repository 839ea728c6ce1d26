import type { CheckpointId } from "./checkpoint.js";
import type { SnapshotVolume } from "./domain-snapshot.js";
import type { MovedPath } from "./machine-ends.js";
import type { StandIn } from "./stand-in.js";

/**
 * What an operation acquires, written to its journal before it exists. Undoing an entry is idempotent, and fine when the
 * thing was never made or is already gone: recovery cannot know how far a killed process came. Plain JSON, because it
 * outlives the process and may be undone by a later version; unknown kinds stop recovery instead of being skipped.
 */
export type UndoEntry =
  /** A new checkpoint: merge it into its predecessor on every disk, as if it had never been. */
  | { readonly kind: "checkpoint"; readonly checkpoint: CheckpointId; readonly targets: readonly string[] }
  /** The guest is stopped by us: continue it. */
  | { readonly kind: "vm-held" }
  /** The guest's memory is being saved by us: end that, and give devices their images back, and continue the guest if it ran; otherwise it is paused again. */
  | { readonly kind: "vm-saving"; readonly wasRunning: boolean; readonly standIns?: readonly StandIn[] }
  /** The guest's file systems are frozen by us, through the guest agent on this socket: thaw them. */
  | { readonly kind: "vm-frozen"; readonly socketPath: string }
  /** A node in the domain's QEMU: delete it. */
  | { readonly kind: "vm-node"; readonly node: string }
  /** A filter between a device and its disk: give the device its disk back. The filter knows which disk that is. */
  | { readonly kind: "vm-filter"; readonly target: string; readonly filter: string }
  /** A block job in the domain's QEMU: cancel it. */
  | { readonly kind: "vm-job"; readonly id: string }
  | { readonly kind: "vm-export"; readonly id: string }
  /** The domain's NBD server: stop it when no export is left. */
  | { readonly kind: "vm-nbd-server"; readonly socketPath: string }
  /** A bitmap that lives only for an export. */
  | { readonly kind: "vm-bitmap"; readonly node: string; readonly bitmap: string }
  | { readonly kind: "file"; readonly path: string }
  /** A file with a second name: remove that if it is this file's, then the file. */
  | { readonly kind: "linked-file"; readonly path: string; readonly link: string }
  /** A snapshot by LVM: remove it if it has the tag. */
  | { readonly kind: "volume"; readonly volume: SnapshotVolume }
  /** A directory of ours: remove it with what is in it. */
  | { readonly kind: "directory"; readonly path: string }
  /** A directory of ours that users named: remove it if nothing is in it. */
  | { readonly kind: "empty-directory"; readonly path: string }
  /** A process whose command line names this directory, which is its own: end it, then remove the directory. */
  | { readonly kind: "daemon"; readonly directory: string }
  /** An export of such a process. */
  | { readonly kind: "daemon-export"; readonly directory: string; readonly id: string }
  /** A QEMU with exactly these arguments, which has not run yet: end it, and give the paths back to the one that had them. */
  | { readonly kind: "machine"; readonly arguments: readonly string[]; readonly moved: readonly MovedPath[] };

export type UndoKind = UndoEntry["kind"];

/** What the domain's QEMU has. */
export type QemuEntry = Extract<UndoEntry, { readonly kind: `vm-${string}` }>;

/** What the host has beside it: files, directories and processes. */
export type HostEntry = Exclude<UndoEntry, QemuEntry | { readonly kind: "checkpoint" }>;

export function isQemuEntry(entry: UndoEntry): entry is QemuEntry {
  return entry.kind.startsWith("vm-");
}
