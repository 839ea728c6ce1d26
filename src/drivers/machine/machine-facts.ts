import type { SnapshotMachine } from "../../model/domain-snapshot.js";
import type { MachineFacts } from "../../ports/machines.js";
import type { QmpSession } from "../../qmp/index.js";
import { findQemu } from "./machine-process.js";

/** What is kept with a snapshot that has memory. */
export async function readMachine(qmp: QmpSession, qmpSocketPath: string): Promise<SnapshotMachine> {
  const process = await findQemu(qmpSocketPath);
  return { ...(await readMachineFacts(qmp)), arguments: process?.arguments ?? [] };
}

/** What of a running machine decides whether a memory image fits: in the words of `SnapshotMachine`. */
export async function readMachineFacts(qmp: QmpSession): Promise<MachineFacts> {
  const type = String(await qmp.execute("qom-get", { path: "/machine", property: "type" }));
  const cpus = await qmp.execute("query-cpus-fast");
  const path = cpus[0]?.["qom-path"];
  const cpu = path === undefined ? "" : String(await qmp.execute("qom-get", { path, property: "type" }));
  const memory = await qmp.execute("query-memory-size-summary");
  const { major, minor, micro } = qmp.version;
  return {
    type: type.replace(/-machine$/, ""),
    cpu: cpu.replace(/-[a-z0-9_]+-cpu$/, ""),
    memoryBytes: memory["base-memory"] + (memory["plugged-memory"] ?? 0),
    cpus: cpus.length,
    qemuVersion: `${major}.${minor}.${micro}`,
    devices: await readDevices(qmp),
  };
}

/** `<type> <bus> <address> <id>` of what was added to the machine, as far as each has it; what is built in goes with the type. */
async function readDevices(qmp: QmpSession): Promise<readonly string[]> {
  const devices: string[] = [];
  for (const parent of ["/machine/peripheral", "/machine/peripheral-anon"]) {
    for (const { name, type: child } of await qmp.execute("qom-list", { path: parent })) {
      const [, type] = /^child<(.+)>$/.exec(child) ?? [];
      if (type === undefined) continue;
      const path = `${parent}/${name}`;
      const members = new Set((await qmp.execute("qom-list", { path })).map((member) => member.name));
      const read = async (property: string): Promise<unknown> =>
        members.has(property) ? qmp.execute("qom-get", { path, property }) : undefined;
      const bus = await read("parent_bus");
      const address = await read("addr");
      const place = typeof bus === "string" ? bus.replace(/^.*\//, "") : "";
      devices.push([type, place, slotText(address), name].filter((word) => word !== "").join(" "));
    }
  }
  return devices.toSorted();
}

/** A PCI address is one number to QEMU: five bits of slot, three of function. */
function slotText(address: unknown): string {
  if (typeof address !== "number") return "";
  return `${(address >> 3).toString(16).padStart(2, "0")}.${address & 7}`;
}
