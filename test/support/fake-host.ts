import { rm } from "node:fs/promises";
import type { HostEntry } from "../../src/model/undo.js";
import type { HostCleaner } from "../../src/ports/state-store.js";
import { FakeScratch } from "./fake-scratch.js";
import type { FakeExport } from "./fake-reader.js";

/** A storage daemon that serves the images of an inactive domain: nodes by name, exports by id. */
export interface FakeDaemon {
  readonly nodes: Map<string, Omit<FakeExport, "exportName" | "socketPath" | "ended">>;
  readonly exports: Map<string, FakeExport>;
}

/** The host around the fakes: paths that exist, and daemons by their directory. Real directories are removed for real. */
export class FakeHost implements HostCleaner {
  /** Of every file system there is. */
  freeBytes = 2 ** 40;
  readonly files = new Set<string>();
  readonly directories = new Set<string>();
  readonly scratch = new FakeScratch();
  readonly daemons = new Map<string, FakeDaemon>();

  async undo(entry: HostEntry): Promise<void> {
    switch (entry.kind) {
      case "file":
        this.files.delete(entry.path);
        return;
      case "linked-file":
        this.files.delete(entry.path);
        this.files.delete(entry.link);
        return;
      case "directory":
      case "empty-directory":
        this.directories.delete(entry.path);
        await rm(entry.path, { recursive: true, force: true });
        return;
      case "daemon":
        this.#end(entry.directory);
        return;
      case "daemon-export":
        this.#endExport(entry.directory, entry.id);
        return;
      case "machine":
      case "volume":
        throw new Error(`Expected no undo of a ${entry.kind}: the fake host has none`);
    }
  }

  traces(): unknown {
    const daemons = [...this.daemons].map(([directory, { nodes, exports }]) => [
      directory,
      [...nodes.keys()],
      [...exports.keys()],
    ]);
    return { files: [...this.files], directories: [...this.directories], daemons };
  }

  #end(directory: string): void {
    for (const id of this.daemons.get(directory)?.exports.keys() ?? []) this.#endExport(directory, id);
    this.daemons.delete(directory);
  }

  #endExport(directory: string, id: string): void {
    const found = this.daemons.get(directory)?.exports.get(id);
    if (found === undefined) return;
    found.ended = true;
    this.daemons.get(directory)?.exports.delete(id);
  }
}
