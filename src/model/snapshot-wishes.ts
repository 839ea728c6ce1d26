import { FleeceError } from "../shared/errors.js";
import type { CreateDomainSnapshotRequest, SnapshotKind } from "./domain-snapshot.js";
import type { SnapshotWishes, WishedDisk } from "./snapshot-file.js";

/**
 * What options and a document ask for together. Where both name a thing, they must name the same: fails with INVALID_ARGUMENT, which
 * says both values. `others` are the targets of disks that the document does not name and includes all the same.
 */
export function joinWishes(
  options: CreateDomainSnapshotRequest,
  document: SnapshotWishes,
  others: readonly string[],
): CreateDomainSnapshotRequest {
  const name = same("name", options.name, document.name);
  const description = same("description", options.description, document.description);
  const diskOnly = same(
    "diskOnly",
    options.diskOnly,
    document.memory === undefined ? undefined : !document.memory,
  );
  const memoryPath = same("memoryPath", options.memoryPath, document.memoryPath);
  const kind = same("kind", options.kind, oneKind(document));
  if (options.disks !== undefined && document.disks !== undefined) {
    throw differ(
      "disks",
      shown(options.disks.map(({ disk }) => disk)),
      shown(document.disks.map(({ disk }) => disk)),
    );
  }
  return {
    ...options,
    name,
    description,
    diskOnly,
    memoryPath,
    kind,
    disks: options.disks ?? (document.disks && included(document.disks, others)),
  };
}

function included(
  disks: readonly WishedDisk[],
  others: readonly string[],
): CreateDomainSnapshotRequest["disks"] {
  const named = disks.flatMap(({ disk, kind, overlay }) => (kind === "no" ? [] : [{ disk, kind, overlay }]));
  const unnamed = others.filter((target) => disks.every(({ disk }) => disk !== target));
  const all = [...named, ...unnamed.map((disk) => ({ disk }))];
  return all.length === 0 ? undefined : all;
}

function oneKind({ kind: ofMemory, disks = [] }: SnapshotWishes): SnapshotKind | undefined {
  const said = [ofMemory, ...disks.map(({ kind }) => kind)];
  const kinds = new Set(said.flatMap((kind) => (kind === undefined || kind === "no" ? [] : [kind])));
  if (kinds.size < 2) return [...kinds][0];
  throw new FleeceError(
    "INVALID_ARGUMENT",
    "Expected disks of one kind, and memory of the same, got external and internal: QEMU cannot take both at one moment",
  );
}

function same<T extends string | boolean>(
  what: string,
  option: T | undefined,
  said: T | undefined,
): T | undefined {
  if (option === undefined || said === undefined || option === said) return option ?? said;
  throw differ(what, String(option), String(said));
}

function differ(what: string, option: string, said: string): FleeceError {
  return new FleeceError(
    "INVALID_ARGUMENT",
    `Expected options and document to say the same of ${what}, got ${option} from the options and ${said} from the document`,
  );
}

function shown(list: readonly string[]): string {
  return list.length === 0 ? "none" : list.join(", ");
}
