import { fileURLToPath } from "node:url";
import ts from "typescript";
import { describe, expect, it } from "vitest";
import { connectTo, startPeer } from "./processes.js";
import { SchemaComparison } from "./schema-compare.js";

const folder = fileURLToPath(new URL("../../../src/qmp/schema/", import.meta.url));
const program = ts.createProgram([`${folder}commands.ts`, `${folder}events.ts`], {
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  strict: true,
  exactOptionalPropertyTypes: true,
  noEmit: true,
  types: [],
});
const checker = program.getTypeChecker();

function interfaceIn(file: string, name: string): ts.Type {
  const source = program.getSourceFile(`${folder}${file}`);
  const module = source === undefined ? undefined : checker.getSymbolAtLocation(source);
  const symbol = module?.exports?.get(ts.escapeLeadingUnderscores(name));
  if (symbol === undefined) throw new Error(`Expected ${name} in ${file}`);
  return checker.getDeclaredTypeOfSymbol(symbol);
}

const commands = interfaceIn("commands.ts", "QmpCommands");
const events = interfaceIn("events.ts", "QmpEvents");

/** What the table marks as known to machines only. */
const machineOnly = [
  "yank",
  ...["query-migrate-capabilities", "query-migrate-parameters", "migrate-set-capabilities"],
  ...["migrate-set-parameters", "migrate", "migrate_cancel", "query-cpus-fast", "query-memory-size-summary"],
  ...["query-status", "query-name", "query-uuid", "query-migrate", "query-iothreads"],
  ...["migrate-incoming", "snapshot-save", "snapshot-load", "snapshot-delete"],
  ...["stop", "cont", "system_powerdown", "human-monitor-command"],
];

/** What not every QEMU has: 7.2, or 10.0. */
const newer = ["blockdev-set-active"];
const notEverywhere = [
  ...newer.map((name) => `${name}: QEMU has no such command`),
  ...["switchover-ack, mapped-ram", "compress, block"].map(
    (names) => `migrate-set-capabilities.capabilities[].capability: QEMU does not take ${names}`,
  ),
];

describe("QmpCommands", () => {
  it("describes arguments and replies as QEMU itself does", async () => {
    const session = await connectTo(await startPeer("qemu-system-x86_64"));
    const comparison = new SchemaComparison(checker, await session.execute("query-qmp-schema"));
    comparison.compareCommands(commands);
    comparison.compareEvents(events);
    expect(comparison.differences.filter((difference) => !notEverywhere.includes(difference))).toEqual([]);
  });

  it("marks exactly what a storage daemon does not know", async () => {
    const session = await connectTo(await startPeer("qemu-storage-daemon"));
    const known = new Set((await session.execute("query-commands")).map(({ name }) => name));
    const unknown = commands.getProperties().filter(({ name }) => !known.has(name));
    const names = unknown.map(({ name }) => name).filter((name) => !newer.includes(name));
    expect(names.sort()).toEqual([...machineOnly].sort());
  });
});
