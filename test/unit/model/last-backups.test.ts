import { describe, expect, it } from "vitest";
import type { BackupEntry } from "../../../src/model/backup.js";
import { lastBackups } from "../../../src/model/last-backups.js";

const at = (hour: number): string => new Date(Date.UTC(2026, 0, 1, hour)).toISOString();
const ms = (hour: number): number => Date.parse(at(hour));

/** As far as the rule looks at it. */
function backup(id: string, hour: number, targets: readonly string[], parent?: string): BackupEntry {
  const disks = targets.map((target) => ({ target }));
  return {
    repository: "r",
    domain: "vm",
    id,
    manifest: { time: at(hour), parent, disks },
  } as unknown as BackupEntry;
}

const DAMAGED: BackupEntry = { repository: "r", domain: "vm", id: "d", damage: "its manifest is empty" };

describe("lastBackups", () => {
  it("is the newest backup of the domain, and of each disk that it may lack", () => {
    const entries = [
      backup("a", 1, ["vda", "vdb"]),
      backup("c", 3, ["vda"], "a"),
      backup("b", 2, ["vda", "vdb"], "a"),
    ];
    const { timeMs, disks } = lastBackups(entries);
    expect(timeMs).toBe(ms(3));
    expect(Object.fromEntries(disks)).toEqual({ vda: ms(3), vdb: ms(2) });
  });

  it("leaves out what cannot be restored", () => {
    const entries = [
      backup("a", 1, ["vda"]),
      DAMAGED,
      backup("e", 4, ["vda"], "d"),
      backup("f", 5, ["vda"], "gone"),
    ];
    expect(lastBackups(entries).timeMs).toBe(ms(1));
    expect(lastBackups([DAMAGED])).toEqual({ timeMs: undefined, disks: new Map() });
  });
});
