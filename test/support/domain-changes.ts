import { rm } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { createImage } from "./image-tool.js";
import type { QmpProxy } from "./qmp-proxy.js";
import type { Site } from "./site.js";

const MIB = 1024 * 1024;

/** What a VM needs for all changes: a panic device, and a controller whose disks come and go without the guest's help. */
export const CHANGEABLE_HARDWARE = ["-device", "pvpanic", "-device", "virtio-scsi-pci,id=spare"];

/** `vda` is on virtio, `vdb` on SCSI. */
export interface ChangeableSite extends Site {
  /** Between the agent and the domain's monitor, for a change that needs it. */
  readonly proxy?: QmpProxy;
}

const UNSHARED = /'resize' are both required by .* and unshared by node 'fleece-.*-guard'/;

type Change = (at: ChangeableSite) => Promise<unknown>;

/** Changes to a domain, by what they are called in test/faults/README.md. They resolve when the change is complete. */
export const DOMAIN_CHANGES = {
  pause: (at) => at.vm.qmp("stop"),
  "pause and resume": async (at) => {
    await at.vm.qmp("stop");
    await at.vm.qmp("cont");
  },
  reset: async (at) => {
    await at.vm.qmp("system_reset");
    await at.vm.waitForEvent("RESET", { timeoutMs: 60_000 });
  },
  "guest panic, QEMU pauses": (at) => panic(at, "pause"),
  "guest panic, QEMU ends": async (at) => {
    await panic(at, "shutdown");
    await at.vm.waitForEnd();
  },
  shutdown: (at) => at.vm.quit(),
  "shutdown and start": (at) => at.vm.restart(),
  "kill -9 of QEMU": (at) => at.vm.kill(),
  "kill -9 of QEMU and start": async (at) => {
    await at.vm.kill();
    await at.vm.restart();
  },
  "hot-plug of a disk": async (at) => {
    const file = at.directory.file("plugged.qcow2");
    await rm(file, { force: true });
    await createImage(file, 4 * MIB, { format: "qcow2" });
    const image = { driver: "file", filename: file };
    await at.vm.qmp("blockdev-add", { driver: "qcow2", "node-name": "plugged", file: image });
    await at.vm.qmp("device_add", { driver: "scsi-hd", id: "sdx", bus: "spare.0", drive: "plugged" });
  },
  "hot-unplug of a disk that is read": async (at) => {
    await at.vm.qmp("device_del", { id: "vdb" });
    const accept = ({ data }: { data: Readonly<Record<string, unknown>> }): boolean =>
      data["device"] === "vdb";
    await at.vm.waitForEvent("DEVICE_DELETED", { timeoutMs: 60_000, accept });
  },
  "block_resize to more": (at) => refused(at, resize(at, 16 * MIB), UNSHARED),
  "block_resize to less": (at) => refused(at, resize(at, 4 * MIB), UNSHARED),
  "block_resize of the disk's node": (at) =>
    refused(at, at.vm.qmp("block_resize", { "node-name": "vda-format", size: 16 * MIB }), /in use/),
  migration: async (at) => {
    await at.vm.qmp("migrate", { uri: "exec:cat > /dev/null" });
    for (;;) {
      const { status } = (await at.vm.qmp("query-migrate")) as { status?: string };
      if (status === "failed") return;
      if (status === "completed") throw new Error("Expected a migration that fails, got one that completes");
      await delay(10);
    }
  },
  "another tool's backup job": async (at) => {
    await addTarget(at);
    const job = { "job-id": "other", device: "vda-format", target: "other-target", sync: "full" };
    await at.vm.qmp("blockdev-backup", job);
    await at.vm.waitForEvent("BLOCK_JOB_COMPLETED", { timeoutMs: 60_000 });
  },
  "another tool's mirror job": async (at) => {
    await addTarget(at);
    const job = { "job-id": "other", target: "other-target", sync: "full" };
    for (const device of ["vda-format", await rootNode(at)]) {
      await refused(at, at.vm.qmp("blockdev-mirror", { ...job, device }), /Need a root block node/);
    }
  },
  "another tool's external snapshot": (at) =>
    refused(at, overlay(at, "vda-format"), /node is used as backing hd of 'fleece-/),
  "another tool's external snapshot over the filter": async (at) => overlay(at, await rootNode(at)),
  "the monitor hangs up": (at) => {
    at.proxy?.hangUp();
    return Promise.resolve();
  },
} satisfies Record<string, Change>;

/** Those for which the agent must reach the domain through a proxy. A proxy does not look like a QEMU that has ended. */
export const PROXIED_CHANGES: ReadonlySet<string> = new Set(["the monitor hangs up"]);

export type DomainChange = keyof typeof DOMAIN_CHANGES;

async function panic(at: Site, action: "pause" | "shutdown"): Promise<void> {
  await at.vm.qmp("set-action", { panic: action });
  // What the guest's panic driver writes to the device's port.
  await at.vm.qmp("human-monitor-command", { "command-line": "o /b 0x505 1" });
  await at.vm.waitForEvent("GUEST_PANICKED", { timeoutMs: 60_000 });
}

async function refused(at: Site, request: Promise<unknown>, words: RegExp): Promise<void> {
  const answer = await request.then(
    () => "carried out",
    (error: unknown) => String(error),
  );
  if (!words.test(answer)) throw new Error(`Expected ${String(words)}, got ${answer} (${at.vm.pid})`);
}

async function resize(at: Site, size: number): Promise<unknown> {
  return at.vm.qmp("block_resize", { "node-name": await rootNode(at), size });
}

/** The node that QEMU names for the device: the disk's own, or the filter over it. */
async function rootNode(at: Site): Promise<string> {
  const { devices } = await at.vm.blockState();
  const entry = devices.find((device) => device.includes("/vda/"));
  return entry?.split(" ").at(-1) ?? "";
}

async function addTarget(at: Site): Promise<void> {
  await at.vm.qmp("blockdev-add", { driver: "null-co", "node-name": "other-target", size: 8 * MIB });
}

async function overlay(at: Site, node: string): Promise<unknown> {
  const file = at.directory.file("overlay.qcow2");
  const request = { "node-name": node, "snapshot-file": file, "snapshot-node-name": "overlay" };
  return at.vm.qmp("blockdev-snapshot-sync", request);
}
