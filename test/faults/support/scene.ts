import { readdir, readFile, rm } from "node:fs/promises";
import { expect } from "vitest";
import type { BlockState } from "../../support/block-state.js";
import { copyToRaw } from "../../support/image-tool.js";
import { startSite, type Site, type SiteOptions } from "../../support/site.js";

const MIB = 1024 * 1024;
const DISK_BYTES = 2 * MIB;
const FILLED_BYTES = MIB;
const FILL_PATTERN = 0x5a;

interface GuestWrite {
  readonly target: string;
  readonly offset: number;
  readonly length: number;
  readonly pattern: number;
}

export interface BackupMessage {
  readonly id: string;
  readonly level: "FULL" | "INCREMENTAL";
  readonly reason: string;
  readonly consistency: string;
}

type Content = ReadonlyMap<string, Buffer>;

/**
 * A site with small disks whose content the test knows at every moment: a backup is right if each disk shows one of the
 * moments through which the guest went. That it is the same one on all disks is shown by tests with a real guest: the writes
 * here come by the monitor, and go on while the guest's CPUs are held.
 */
export class Scene {
  readonly at: Site;
  readonly targets: readonly string[];
  readonly #content: Map<string, Buffer>;
  readonly #pristine: BlockState;
  readonly #moments = new Map<string, Content>();
  /** The content at the last mark, and the guest's writes since. */
  #marked: Content;
  #writes: GuestWrite[] = [];
  #turn = 0;

  private constructor(at: Site, targets: readonly string[], pristine: BlockState) {
    this.at = at;
    this.targets = targets;
    this.#pristine = pristine;
    const initial = (): Buffer => Buffer.alloc(DISK_BYTES).fill(FILL_PATTERN, 0, FILLED_BYTES);
    this.#content = new Map(targets.map((target) => [target, initial()]));
    this.#marked = copyOf(this.#content);
  }

  static async start(diskCount: number, options: Omit<SiteOptions, "disks"> = {}): Promise<Scene> {
    const targets = ["vda", "vdb", "vdc"].slice(0, diskCount);
    const disk = { format: "qcow2", sizeBytes: DISK_BYTES, filledBytes: FILLED_BYTES } as const;
    const at = await startSite({ ...options, disks: targets.map((target) => ({ target, ...disk })) });
    return new Scene(at, targets, await at.vm.blockState());
  }

  /** From here on the guest's moments count for backups that the test meets first from now on. */
  mark(): void {
    this.#marked = copyOf(this.#content);
    this.#writes = [];
  }

  /** Fails unless the guest's device is told that the write went well. */
  async write(target: string, offset: number, length: number, pattern: number): Promise<void> {
    const verdict = await this.at.vm.guestWrite(target, offset, length, pattern);
    expect(verdict.ok, `the guest's write: ${verdict.text}`).toBe(true);
    this.#writes.push({ target, offset, length, pattern });
    this.#content.get(target)?.fill(pattern, offset, offset + length);
  }

  /** Changes every disk: a place that has content, and a place that has none or was written lately. */
  async touch(): Promise<void> {
    const turn = this.#turn++;
    for (const target of this.targets) {
      await this.write(target, (turn * 77_000) % (FILLED_BYTES - 8192), 6000, 1 + (turn % 250));
      await this.write(target, FILLED_BYTES + ((turn * 131_072) % (MIB - 65_536)), 65_536, 1 + (turn % 249));
    }
  }

  async backUp(...options: string[]): Promise<BackupMessage> {
    // What a killed command has published belongs to the moments up to here.
    await this.expectSound();
    this.mark();
    const message = await this.at.json<BackupMessage>("backup", "run", "vm", ...options);
    await this.expectSound();
    return message;
  }

  /** Every backup in the repository that the test has not met yet shows a moment since the last mark; their ids. */
  async expectSound(): Promise<readonly string[]> {
    const names = await readdir(this.at.directory.file("backups/vm")).catch(() => []);
    const ids = names.filter((name) => !name.startsWith(".")).toSorted();
    for (const id of ids) {
      if (this.#moments.has(id)) continue;
      const found = await this.#contentOf(id);
      expect(this.#wasMoment(found), `backup ${id} shows a moment of the guest`).toBe(true);
      this.#moments.set(id, found);
    }
    return ids;
  }

  /** Everything that is listed still shows its moment, and the product's own reading finds no damage. */
  async expectVerified(): Promise<void> {
    const ids = await this.expectSound();
    const { backups } = await this.at.json<{ backups?: BackupMessage[] }>("backup", "list");
    expect((backups ?? []).map(({ id }) => id).toSorted()).toEqual(ids);
    for (const id of ids) {
      const known = this.#moments.get(id) ?? new Map<string, Buffer>();
      expect(sameContent(await this.#contentOf(id), known), `backup ${id} shows its moment`).toBe(true);
      await this.at.json("backup", "verify", id);
    }
  }

  /**
   * Nothing of ours is left but checkpoints of which the newest records, and the guest runs. `olderMayRecord`: the steps on
   * the bitmaps of an inactive domain are taken one by one, and a kill in between may leave two that record: the next
   * backup reads a block too many, never one too few, and lets only the newest go on. `deletedMayRemain`: half-deleted backups,
   * which no list shows, wait for the next command that writes to the repository.
   */
  async expectClean({ olderMayRecord = false, deletedMayRemain = false } = {}): Promise<void> {
    const expected = deletedMayRemain ? /^backups\/vm\/([^.]|\.deleted-)/ : /^backups\/vm\/[^.]/;
    const files = (await this.at.files()).filter((name) => !expected.test(name));
    expect(files, "scratch files, sockets, records and unfinished backups").toEqual([]);
    if (!this.at.vm.running) return;
    const state = await this.at.vm.blockState();
    const strange = state.bitmaps.filter(({ node, name, inconsistent }) => {
      return !node.endsWith("-format") || !name.startsWith("fleece:1:") || inconsistent;
    });
    expect(strange, "bitmaps that are no checkpoints").toEqual([]);
    for (const target of this.targets) {
      const bitmaps = state.bitmaps
        .filter(({ node }) => node === this.at.vm.nodeName(target))
        .toSorted((a, b) => orderOf(a) - orderOf(b));
      const recording = bitmaps.filter((bitmap) => bitmap.recording);
      expect(recording.at(-1), `the recording checkpoint of ${target}`).toEqual(bitmaps.at(-1));
      if (!olderMayRecord) expect(recording.length).toBe(Math.min(1, bitmaps.length));
    }
    expect({ ...state, bitmaps: [] }).toEqual({ ...this.#pristine, bitmaps: [] });
    expect(await this.status()).toBe("running");
  }

  async status(): Promise<string> {
    const { status } = (await this.at.vm.qmp("query-status")) as { status: string };
    return status;
  }

  async checkpoints(): Promise<string[]> {
    const { checkpoints } = await this.at.json<{ checkpoints?: { name: string }[] }>(
      ...["checkpoint", "list", "vm"],
    );
    return (checkpoints ?? []).map(({ name }) => name);
  }

  /** The bytes of restored or copied disks are those that the guest has now. */
  expectCurrent(found: Content): void {
    expect(sameContent(found, this.#content), "the content is the guest's").toBe(true);
  }

  /** By QEMU's own tool, which knows nothing of ours. */
  async #contentOf(id: string): Promise<Content> {
    const found = new Map<string, Buffer>();
    for (const target of this.targets) {
      const image = this.at.directory.file(`backups/vm/${id}/${target}.qcow2`);
      found.set(target, await this.readRaw(image, "qcow2"));
    }
    return found;
  }

  async readRaw(image: string, format: "qcow2" | "raw"): Promise<Buffer> {
    const raw = this.at.directory.file("compare.raw");
    await copyToRaw(image, format, raw);
    const content = await readFile(raw);
    await rm(raw);
    return content;
  }

  #wasMoment(found: Content): boolean {
    return this.targets.every((target) => {
      const content = copyOf(this.#marked).get(target);
      const shown = found.get(target);
      if (content === undefined || shown === undefined) return false;
      if (shown.equals(content)) return true;
      return this.#writes.some(({ offset, length, pattern, target: written }) => {
        if (written !== target) return false;
        content.fill(pattern, offset, offset + length);
        return shown.equals(content);
      });
    });
  }
}

/** As the name of a checkpoint's bitmap has it: `fleece:1:<order>:…`. */
function orderOf({ name }: { readonly name: string }): number {
  return Number(name.split(":")[2]);
}

function copyOf(content: Content): Map<string, Buffer> {
  return new Map([...content].map(([target, bytes]) => [target, Buffer.from(bytes)]));
}

function sameContent(a: Content, b: Content): boolean {
  return [...b].every(([target, bytes]) => a.get(target)?.equals(bytes) === true);
}
