import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { DomainSnapshotDirectory } from "../../../src/drivers/domain-snapshot-directory.js";
import { type DomainSnapshots, noSnapshots } from "../../../src/model/domain-snapshot.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const full: DomainSnapshots = {
  schemaVersion: 1,
  domain: "web01",
  current: "s1",
  layers: [{ target: "vda", home: "/vm/a.qcow2", active: "/vm/a-s1.qcow2", format: "qcow2" }],
  snapshots: [
    {
      name: "s1",
      description: "before the upgrade",
      timeMs: 1_700_000_000_000,
      state: "running",
      kind: "external",
      live: true,
      memory: { kind: "external", file: "/s/s1.save", sizeBytes: 9, sha256: "0".repeat(64) },
      pausedMs: 12.5,
      disks: [{ target: "vda", file: "/vm/a.qcow2", format: "vpc", sizeBytes: 1, bitmaps: ["b"] }],
      machine: {
        type: "pc-q35-7.2",
        cpu: "qemu64",
        memoryBytes: 1,
        cpus: 1,
        qemuVersion: "7.2.22",
        arguments: ["/usr/bin/qemu-system-x86_64"],
        devices: ["virtio-blk-pci 0000:00:02.0 d0"],
      },
      directory: "/s",
      clones: [{ directory: "/c", timeMs: 1 }],
    },
  ],
};

describe("DomainSnapshotDirectory", () => {
  it("gives back what was written, and nothing for a domain without snapshots", async () => {
    const { path } = await temporaryDirectory();
    const store = new DomainSnapshotDirectory(path);
    expect(await store.read("web01")).toEqual(noSnapshots("web01"));
    await store.write(noSnapshots("web01"));
    await store.write(full);
    expect(await store.read("web01")).toEqual(full);
    expect(await readdir(await store.directory("web01"))).toEqual(["snapshots.json"]);
  });

  it.each([
    ["{", "it is not JSON"],
    [JSON.stringify({ ...full, schemaVersion: 2 }), "schemaVersion"],
    [JSON.stringify({ ...full, snapshots: [{ name: "s1" }] }), "snapshots[0]"],
    [JSON.stringify({ ...full, domain: "db01" }), "it is of domain db01"],
  ])("refuses a document that cannot be relied on: %s", async (text, why) => {
    const { path } = await temporaryDirectory();
    await mkdir(join(path, "domain-snapshots/web01"), { recursive: true, mode: 0o700 });
    await writeFile(join(path, "domain-snapshots/web01/snapshots.json"), text);
    await expect(new DomainSnapshotDirectory(path).read("web01")).rejects.toMatchObject({
      code: "DAMAGED",
      message: expect.stringContaining(why) as string,
    });
  });
});
