import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { access, mkdir, readFile, writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { runCommand } from "../guest/commands.js";
import { BoundProcess } from "../support/bound-process.js";
import { writeConfig } from "../support/config-file.js";
import { runFleece, startFleece } from "../support/fleece.js";
import { temporaryDirectory, untilTestEnds } from "../support/lifetime.js";

const MIB = 1024 * 1024;
const START = MIB;
const LETTER = "home/anna/letter.txt";
const README = new URL("../../README.md", import.meta.url);

/** The commands of the document, with other places. */
async function documented(places: ReadonlyMap<string, string>): Promise<readonly string[]> {
  const text = await readFile(README, "utf8");
  const [, block = ""] = /### Single files\n.*?```sh\n(.*?)```/s.exec(text) ?? [];
  const [, debugfs = ""] = /`(debugfs -R .*?)`\./.exec(text) ?? [];
  const lines = [...block.trim().split("\n"), debugfs].map((line) => line.replace(/ +#.*$/, ""));
  return lines.map((line) =>
    line.replaceAll(/\/run\/vda\.sock|\/mnt\/|\/tmp\/| ID /g, (place) => places.get(place) ?? ""),
  );
}

/** A disk with a partition table, whose one partition begins at 1 MiB and holds ext4. */
async function partitionedDisk(path: string, files: string): Promise<void> {
  const partition = `${path}.partition`;
  await runCommand("mkfs.ext4", ["-q", "-F", "-d", files, partition, "24M"]);
  const content = await readFile(partition);
  const disk = Buffer.alloc(START + content.length);
  content.copy(disk, START);
  // The first of the four entries of a master boot record: type 0x83 (Linux), first sector and number of sectors.
  disk.writeUInt8(0x83, 446 + 4);
  disk.writeUInt32LE(START / 512, 446 + 8);
  disk.writeUInt32LE(content.length / 512, 446 + 12);
  disk.writeUInt16LE(0xaa55, 510);
  await writeFile(path, disk);
}

const shell = (line: string): Promise<{ stdout: string }> =>
  promisify(execFile)("sh", ["-c", line], {
    env: { ...process.env, PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin` },
  });

/** Whether this host lets us mount by a loop device and use FUSE, as a container may not. */
async function canMount(directory: string, disk: string): Promise<boolean> {
  if (process.getuid?.() !== 0) return false;
  const place = `${directory}/probe`;
  await mkdir(place);
  return shell(`test -w /dev/fuse && mount -o loop,offset=${START} ${disk} ${place} && umount ${place}`).then(
    () => true,
    () => false,
  );
}

describe("single files of a backup", () => {
  it("a file that was deleted comes back from the backup before, byte for byte, as the README says", async (context) => {
    const at = await temporaryDirectory();
    const content = randomBytes(300_000);
    await mkdir(at.file("files/home/anna"), { recursive: true });
    await writeFile(at.file(`files/${LETTER}`), content);
    const disk = at.file("vda.raw");
    await partitionedDisk(disk, at.file("files"));
    if (!(await canMount(at.path, disk))) context.skip("mounting by FUSE and loop devices is refused here");
    for (const name of ["backups", "scratch", "tmp"]) await mkdir(at.file(name));
    const disks = [{ target: "vda", file: disk, format: "raw" as const }];
    const configPath = await writeConfig(at.path, {
      domains: [{ name: "vm", disks }],
      more: { runtimeDir: at.file("run") },
    });
    const backUp = async (): Promise<string> => {
      const result = await runFleece(["--embedded", "backup", "run", "vm", "--json"], { configPath });
      return (result.json() as { id: string }).id;
    };
    const yesterday = await backUp();
    await shell(
      `mount -o loop,offset=${START} ${disk} ${at.file("probe")} && rm ${at.file(`probe/${LETTER}`)} && umount ${at.file("probe")}`,
    );
    const today = await backUp();
    const found: Buffer[] = [];
    for (const id of [yesterday, today]) {
      const place = at.file(id === yesterday ? "y" : "t");
      const socket = `${place}.sock`;
      const lines = await documented(
        new Map([
          ["/run/vda.sock", socket],
          ["/mnt/", `${place}/`],
          ["/tmp/", `${at.file("tmp")}/`],
          [" ID ", ` ${id} `],
        ]),
      );
      const [makePlaces = "", serve = "", fuse = "", show = "", mount = "", copy = "", ...rest] = lines;
      const [unmountFiles = "", unmountDisk = "", dump = ""] = rest;
      await shell(makePlaces);
      const server = await startFleece(serve.replace(/^fleece (.*) &$/, "$1").split(" "), { configPath });
      untilTestEnds(server);
      await server.waitForOutput(/nbd\+unix/, { timeoutMs: 60_000 });
      const [program = "", ...args] = fuse.replace(/ &$/, "").replaceAll("'", "").split(" ");
      const nbdfuse = untilTestEnds(await BoundProcess.start(program, args));
      try {
        await expect
          .poll(
            () =>
              access(`${place}/disk/nbd`).then(
                () => true,
                () => false,
              ),
            { timeout: 60_000 },
          )
          .toBe(true);
        expect((await shell(show)).stdout).toMatch(/^ 1 +2048 /m);
        await shell(mount);
        if (id === yesterday) {
          await shell(copy);
          found.push(await readFile(at.file("tmp/letter.txt")));
          await shell(dump);
          found.push(await readFile(at.file("tmp/letter.txt")));
        } else {
          await expect(shell(copy)).rejects.toThrow(/No such file/);
        }
        await shell(unmountFiles);
        await shell(unmountDisk);
        expect((await nbdfuse.ended).exitCode).toBe(0);
      } finally {
        // After a failure; before the processes end on which it hangs.
        await shell(`umount -l ${place}/files; umount -l ${place}/disk`).catch(() => undefined);
      }
      await server.kill("SIGINT");
    }
    expect(found.map((bytes) => bytes.equals(content))).toEqual([true, true]);
  });
});
