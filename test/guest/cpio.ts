export interface ArchiveEntry {
  /** Relative to the root, without a leading slash; the folders on its way must come first. */
  readonly path: string;
  readonly kind: "file" | "folder" | "link";
  /** The file's bytes, or the link's target. */
  readonly content?: Uint8Array;
  readonly executable?: boolean;
}

const modes = { file: 0o100644, folder: 0o040755, link: 0o120777 };
const headerLength = 110;

/** An archive in cpio's "newc" form, which is what Linux unpacks as its first root file system. */
export function cpioArchive(entries: readonly ArchiveEntry[]): Buffer {
  const parts = entries.map((entry, index) => record(entry, index + 1));
  return Buffer.concat([...parts, record({ path: "TRAILER!!!", kind: "file" }, 0)]);
}

function record(entry: ArchiveEntry, inode: number): Buffer {
  const name = Buffer.from(`${entry.path}\0`);
  const content = entry.content ?? new Uint8Array();
  const mode = modes[entry.kind] | (entry.executable === true ? 0o111 : 0);
  // inode, mode, uid, gid, links, mtime, size, device major and minor (twice), name's length, checksum (unused)
  const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length, 0];
  const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`);
  return Buffer.concat([header, name, padding(headerLength + name.length), content, padding(content.length)]);
}

/** Name and content are each followed by zeroes up to a multiple of four. */
function padding(length: number): Buffer {
  return Buffer.alloc((4 - (length % 4)) % 4);
}
