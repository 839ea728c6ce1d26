import { join } from "node:path";
import { checkName } from "../../model/names.js";

/**
 * `<repository>/<domain>/<backup id>/{manifest.json,<target>.qcow2,<target>.digests}`. What begins with a dot is not a
 * backup; names of domains and backups cannot begin so.
 */
export const MANIFEST_FILE = "manifest.json";
export const LOCK_FILE = ".lock";
const DRAFT_PREFIX = ".partial-";
const DELETED_PREFIX = ".deleted-";

export class Layout {
  readonly root: string;

  /** `root` is absolute. */
  constructor(root: string) {
    this.root = root;
  }

  domain(domain: string): string {
    return join(this.root, checkName("domain", domain));
  }

  backup(domain: string, id: string): string {
    return join(this.domain(domain), checkName("backup", id));
  }

  draft(domain: string, id: string): string {
    return join(this.domain(domain), `${DRAFT_PREFIX}${checkName("backup", id)}`);
  }

  deleted(domain: string, id: string): string {
    return join(this.domain(domain), `${DELETED_PREFIX}${checkName("backup", id)}`);
  }
}

/** What a writer of the domain may have left, and nobody needs once that writer is dead. */
export function isLeftover(name: string): boolean {
  return name.startsWith(DRAFT_PREFIX) || name.startsWith(DELETED_PREFIX);
}

/** The target is a checked name. */
export function imageFile(target: string): string {
  return `${target}.qcow2`;
}

export function digestsFile(target: string): string {
  return `${target}.digests`;
}

/** As it is written into the header of a child's image; relative, so that a repository can be moved. */
export function backingFile(parentId: string, target: string): string {
  return `../${checkName("backup", parentId)}/${imageFile(target)}`;
}
