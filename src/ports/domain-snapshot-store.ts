import type { DomainSnapshots } from "../model/domain-snapshot.js";

/** Where the documents of domain snapshots are. Writers hold the domain's lock. */
export interface DomainSnapshotStore {
  /** The document of a domain; an empty one if there is none. Fails with DAMAGED if it cannot be understood. */
  read(domain: string): Promise<DomainSnapshots>;
  /** Replaces it. Durable when it resolves; the old one or the new one is there at any time. */
  write(snapshots: DomainSnapshots): Promise<void>;
  /** Where files of a domain's snapshots go unless told otherwise; made when it is first asked for, mode 0700. */
  directory(domain: string): Promise<string>;
}
