import type { MachineFacts } from "../../ports/machines.js";
import type { QmpSession } from "../../qmp/index.js";

/** What of a running machine decides whether a memory image fits: see `SnapshotMachine`. */
export async function readMachineFacts(qmp: QmpSession): Promise<MachineFacts> {
  const type = String(await qmp.execute("qom-get", { path: "/machine", property: "type" }));
  const cpus = await qmp.execute("query-cpus-fast");
  const path = cpus[0]?.["qom-path"] ?? "";
  const cpu = String(await qmp.execute("qom-get", { path, property: "type" }));
  const memory = await qmp.execute("query-memory-size-summary");
  const tree = await qmp.execute("human-monitor-command", { "command-line": "info qtree" });
  const { major, minor, micro } = qmp.version;
  return {
    type: type.replace(/-machine$/, ""),
    cpu,
    memoryBytes: memory["base-memory"] + (memory["plugged-memory"] ?? 0),
    cpus: cpus.length,
    qemuVersion: `${major}.${minor}.${micro}`,
    devices: devicesOf(tree),
  };
}

/** Properties that say where on its bus a device is, beside the address of PCI. */
const PLACES = /^(channel|scsi-id|lun|unit|port|nr|iobase) = (\S+)/;

/**
 * `<type> <address> <id>` of each device, sorted; `-` for one without an id. The address is that of PCI, or the bus with what the
 * device says of its place on it. Only the human monitor tells all of this at once.
 */
export function devicesOf(tree: string): string[] {
  const devices: { type: string; id: string; bus: string; place: string[]; pci?: string }[] = [];
  const buses: { depth: number; name: string }[] = [];
  for (const line of tree.split(/\r?\n/)) {
    const text = line.trimStart();
    const depth = line.length - text.length;
    const [, bus] = /^bus: (.+)$/.exec(text) ?? [];
    if (bus !== undefined) {
      while ((buses.at(-1)?.depth ?? -1) >= depth) buses.pop();
      buses.push({ depth, name: bus });
      continue;
    }
    const [, type, id] = /^dev: ([^,]+), id "(.*)"$/.exec(text) ?? [];
    if (type !== undefined && id !== undefined) {
      while ((buses.at(-1)?.depth ?? -1) >= depth) buses.pop();
      devices.push({ type, id: id === "" ? "-" : id, bus: buses.at(-1)?.name ?? "-", place: [] });
      continue;
    }
    const device = devices.at(-1);
    if (device === undefined) continue;
    const [, address] = /^class .*, addr ([0-9a-f:.]+), pci id /.exec(text) ?? [];
    if (address !== undefined) device.pci = `0000:${address}`;
    const [, name, value] = PLACES.exec(text) ?? [];
    if (name !== undefined) device.place.push(`${name}=${value ?? ""}`);
  }
  return devices
    .map(({ type, id, bus, place, pci }) => `${type} ${pci ?? [bus, ...place].join("/")} ${id}`)
    .toSorted();
}
