import { join } from "node:path";
import { checkName, isName } from "../../model/names.js";

/**
 * `<repository>/<domain>/<backup id>/{manifest.json,<target>.qcow2,<target>.digests,machine/…}`, beside them `protected` (empty) in a
 * backup that must stay, `copied.json` in a copy, and `merging.json` in one that is merged into another and not a backup any
 * more. What begins with a dot is not a backup; names of domains and backups cannot begin so.
 */
export const MANIFEST_FILE = "manifest.json";
/** Of machine files. */
export const MACHINE_DIRECTORY = "machine";
export const LOCK_FILE = ".lock";
export const PROTECTED_FILE = "protected";
export const COPIED_FILE = "copied.json";
export const MERGING_FILE = "merging.json";
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

/** Amid a merge: what an image that is not encrypted becomes. */
export function encryptedImagePath(imagePath: string): string {
  return `${imagePath}.encrypted`;
}

export function digestsFile(target: string): string {
  return `${target}.digests`;
}

/** Of a disk that another backup has been merged into; each merge has a name of its own, since the manifest decides. */
export function mergedDigestsFile(target: string, mergedId: string): string {
  // No target has a tilde in it.
  return `${digestsFile(target)}~${checkName("backup", mergedId)}`;
}

export function isMergedDigestsFile(name: string, target: string): boolean {
  const prefix = `${digestsFile(target)}~`;
  return name.startsWith(prefix) && isName("backup", name.slice(prefix.length));
}

/** As it is written into the header of a child's image; relative, so that a repository can be moved. */
export function backingFile(parentId: string, target: string): string {
  return `../${checkName("backup", parentId)}/${imageFile(target)}`;
}
