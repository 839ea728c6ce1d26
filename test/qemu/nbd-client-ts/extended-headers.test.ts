import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import type { MappedExtent, NbdConnection } from "nbd-client-ts";
import { qemuImg } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import type { TemporaryDirectory } from "../../support/temporary-directory.js";
import { TestVm } from "../../support/vm.js";
import { content } from "./support/content.js";
import { connection, qemuNbd, storageDaemon, type ServerProcess } from "./support/servers.js";

const run = promisify(execFile);
const MIB = 2 ** 20;
const GIB = 2 ** 30;
const TIB = 2 ** 40;
const SIZE = 16 * TIB;
const PIECE = 64 * 1024;
const ALLOCATION = "base:allocation";
const BITMAP = "qemu:dirty-bitmap:b";
const CONTEXTS = { metaContexts: [ALLOCATION, BITMAP] };
/** Where data is; all but the first is dirty. */
const PLACES = [0, 5 * GIB, TIB - PIECE, 9 * TIB + PIECE, SIZE - PIECE];

type Skip = (note: string) => void;

/** How each server offers the writable export `disk` with its bitmap. */
const servers: Readonly<
  Record<string, (image: string, directory: TemporaryDirectory) => Promise<Pick<ServerProcess, "socketPath">>>
> = {
  "qemu-nbd": (image, directory) =>
    qemuNbd(directory.file("s"), "-f", "qcow2", "--discard=unmap", "-B", "b", image),
  "qemu-storage-daemon": (image, directory) => {
    const node = { driver: "qcow2", "node-name": "d", discard: "unmap", file: fileNode(image) };
    const exported = "type=nbd,id=e,node-name=d,name=disk,writable=on,bitmaps.0=b";
    return storageDaemon(directory.file("s"), "--blockdev", JSON.stringify(node), "--export", exported);
  },
  QEMU: async (image, directory) => {
    const vm = untilTestEnds(await TestVm.start({ directory: directory.path, disks: [], paused: true }));
    const socketPath = directory.file("s");
    const node = { driver: "qcow2", "node-name": "d", discard: "unmap", file: fileNode(image) };
    await vm.qmp("blockdev-add", node);
    await vm.qmp("nbd-server-start", { addr: { type: "unix", data: { path: socketPath } } });
    const exported = { type: "nbd", id: "e", "node-name": "d", name: "disk", writable: true, bitmaps: ["b"] };
    await vm.qmp("block-export-add", exported);
    return { socketPath };
  },
};

function fileNode(filename: string) {
  return { driver: "file", discard: "unmap", filename };
}

/** A disk of 16 TiB with a few pieces of data. Skips by name where the server has no extended headers. */
async function hugeDisk(name: string, skip: Skip) {
  const directory = await temporaryDirectory();
  const image = directory.file("d.qcow2");
  await qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", image, String(SIZE));
  const io = (at: number) => ["-c", `write -P 1 ${at} ${PIECE}`];
  await run("qemu-io", ["-f", "qcow2", ...io(PLACES[0] ?? 0), image]);
  await qemuImg("bitmap", "--add", "-f", "qcow2", "-g", "1M", image, "b");
  await run("qemu-io", ["-f", "qcow2", ...PLACES.slice(1).flatMap(io), image]);
  const { socketPath } = (await servers[name]?.(image, directory)) ?? { socketPath: "" };
  const connect = (extendedHeaders: boolean) =>
    connection({ socketPath } as ServerProcess, { ...CONTEXTS, extendedHeaders });
  const disk = await connect(true);
  if (!disk.extendedHeaders) skip(`cannot run here: ${name} does not offer extended headers`);
  return { disk, image, uri: `nbd+unix:///disk?socket=${socketPath}`, plain: () => connect(false) };
}

async function walk(disk: NbdConnection, contexts?: string[]): Promise<MappedExtent[]> {
  const extents: MappedExtent[] = [];
  for await (const extent of disk.extents(contexts === undefined ? {} : { contexts })) extents.push(extent);
  return extents;
}

/** What nbdinfo, another client, sees of one context. */
async function nbdinfoMap(uri: string, context: string) {
  const { stdout } = await run("nbdinfo", ["--json", `--map=${context}`, uri]);
  const runs = JSON.parse(stdout) as { offset: number; length: number; type: number }[];
  const map: MappedExtent[] = [];
  for (const { offset, length, type } of runs) {
    const last = map.at(-1);
    if (last?.flags[context] === type) map[map.length - 1] = { ...last, length: last.length + length };
    else map.push({ offset, length, flags: { [context]: type } });
  }
  return map;
}

describe("NbdConnection over extended headers", () => {
  it.for(Object.keys(servers))("of %s: sees a disk of 16 TiB as others do", async (name, { skip }) => {
    const { disk, uri, plain } = await hugeDisk(name, skip);
    const map = await walk(disk);
    const dirty = map.filter(({ flags }) => flags[BITMAP] === 1 && flags[ALLOCATION] === 0);
    expect(dirty.map(({ offset }) => offset)).toEqual(PLACES.slice(1));
    expect(map).toEqual(await walk(await plain()));
    for (const context of [ALLOCATION, BITMAP]) {
      expect(await walk(disk, [context])).toEqual(await nbdinfoMap(uri, context));
    }
    const [first, second] = PLACES;
    const hole = await disk.blockStatus((first ?? 0) + PIECE, 8 * TIB, { reqOne: true });
    const length = (second ?? 0) - PIECE;
    expect(hole.get(ALLOCATION)).toEqual([{ offset: PIECE, length, flags: 3 }]);
    for (const at of PLACES) expect(await disk.read(at, PIECE)).toEqual(Buffer.alloc(PIECE, 1));
  });

  it.for(Object.keys(servers))(
    "of %s: has it leave out contexts that are not wanted",
    async (name, { skip }) => {
      const { disk, plain } = await hugeDisk(name, skip);
      expect(disk.canFilterStatus).toBe(true);
      const older = await plain();
      expect(older.canFilterStatus).toBe(false);
      for (const context of [ALLOCATION, BITMAP]) {
        // An answer for the other would end the connection.
        const status = await disk.blockStatus(0, 16 * MIB, { contexts: [context] });
        expect(status).toEqual(await older.blockStatus(0, 16 * MIB, { contexts: [context] }));
        expect([...status.keys()]).toEqual([context]);
      }
      const both = await disk.blockStatus(0, 16 * MIB, { contexts: [BITMAP, ALLOCATION] });
      expect([...both.keys()].sort()).toEqual([ALLOCATION, BITMAP]);
    },
  );

  it.for(Object.keys(servers))("of %s: writes, zeroes and trims beyond 4 GiB", async (name, { skip }) => {
    const { disk, uri } = await hugeDisk(name, skip);
    const data = content(3 * MIB, 1);
    await disk.write(7 * GIB, data, { fua: true });
    expect(Buffer.compare(await disk.read(7 * GIB, data.length), data)).toBe(0);
    if (disk.canCache) await disk.cache(6 * GIB, 100 * MIB);
    await disk.writeZeroes(6 * GIB, 5 * GIB);
    expect(Buffer.compare(await disk.read(7 * GIB, data.length), Buffer.alloc(data.length))).toBe(0);
    if (disk.canFastZero) await disk.writeZeroes(4 * GIB, 6 * GIB, { fastZero: true });
    await disk.trim(9 * TIB - 32 * GIB, 64 * GIB);
    await disk.flush();
    const allocated = (await nbdinfoMap(uri, ALLOCATION)).filter(({ flags }) => flags[ALLOCATION] === 0);
    const left = disk.canFastZero ? [0, 2, 4] : [0, 1, 2, 4];
    expect(allocated).toEqual(
      left.map((index) => ({ offset: PLACES[index], length: PIECE, flags: { [ALLOCATION]: 0 } })),
    );
  });
});
