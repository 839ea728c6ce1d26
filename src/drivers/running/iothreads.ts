import type { QmpSession } from "../../qmp/index.js";

/**
 * QEMU before 9.0 aborts the whole virtual machine when an NBD client disconnects from an export whose node runs in an
 * iothread (assertion in blockdev-nbd.c, seen on 7.2; fixed upstream by 9.0). Whether that can happen to this device's disk.
 */
export function clientsAbort({ version }: QmpSession, iothread: string | undefined): boolean {
  return iothread !== undefined && version.major < 9;
}

/** The name of the iothread that a disk runs in, if any. */
export async function iothreadOf(qmp: QmpSession, qomPath: string): Promise<string | undefined> {
  const paths = await deviceAndControllers(qmp, qomPath);
  const found = await Promise.all(paths.map((path) => property(qmp, path, "iothread")));
  return found.find((iothread) => iothread !== undefined && iothread !== "")?.replace(/^\/objects\//, "");
}

/** A SCSI disk has no iothread of its own: its controller has, somewhere on the path of the bus it sits on. */
async function deviceAndControllers(qmp: QmpSession, qomPath: string): Promise<readonly string[]> {
  const bus = (await property(qmp, qomPath, "parent_bus")) ?? "";
  const parts = bus.split("/").slice(1);
  return [qomPath, ...parts.map((_, index) => `/${parts.slice(0, index + 1).join("/")}`).slice(1)];
}

async function property(qmp: QmpSession, path: string, name: string): Promise<string | undefined> {
  const properties = await qmp.execute("qom-list", { path });
  if (!properties.some((listed) => listed.name === name)) return undefined;
  const value = await qmp.execute("qom-get", { path, property: name });
  return typeof value === "string" ? value : undefined;
}
