import { describe, expect, it } from "vitest";
import { DEADLINE, strikeEverywhere } from "./strike-everywhere.js";

describe("runBackup of disks that QEMU pushes, with a fault at any point, leaves nothing behind and loses nothing", () => {
  for (const fault of ["fail", "disconnect", "crash", "abort", "kill"] as const) {
    it(`in an incremental of two disks: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "incremental", running: true, staged: true });
      expect(found).toEqual([]);
    });
  }

  for (const fault of ["fail", "kill"] as const) {
    it(`in a first full of two disks: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "full", running: true, staged: true });
      expect(found).toEqual([]);
    });
  }
});
