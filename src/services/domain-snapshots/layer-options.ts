import type { DomainSnapshotOptions, MergedLayer } from "../../model/domain-snapshot.js";

/** Of what deletes the parts of a snapshot. */
export interface LayerOptions extends DomainSnapshotOptions {
  /** Awaited before anything is gone. */
  readonly onPlanned: (merged: readonly MergedLayer[]) => Promise<void>;
}
