import { describe, expect, it } from "vitest";
import { DEADLINE, strikeEverywhere } from "./strike-everywhere.js";

describe("runBackup of a running domain with a fault at any point leaves nothing behind and loses nothing", () => {
  for (const fault of ["fail", "disconnect", "stop", "crash", "abort", "kill"] as const) {
    it(`in an incremental of two disks: ${fault}`, DEADLINE, async () => {
      expect(await strikeEverywhere({ fault, level: "incremental", running: true })).toEqual([]);
    });
  }

  for (const fault of ["fail", "disconnect", "kill"] as const) {
    it(`in a full of two disks with the guest frozen: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "full", running: true, quiesce: true });
      expect(found).toEqual([]);
    });
  }

  for (const fault of ["fail", "kill"] as const) {
    it(`in a first full of one disk: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "full", running: true, disks: ["vda"] });
      expect(found).toEqual([]);
    });

    it(`in an incremental of one disk whose checkpoint was lost: ${fault}`, DEADLINE, async () => {
      const scenario = { fault, level: "incremental", running: true, disks: ["vda"], lost: true } as const;
      expect(await strikeEverywhere(scenario)).toEqual([]);
    });

    it(`in an incremental of one disk, without holding the guest: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "incremental", running: true, disks: ["sdb"] });
      expect(found).toEqual([]);
    });
  }
});

describe("runBackup of an inactive domain with a fault at any point leaves nothing behind and loses nothing", () => {
  for (const fault of ["fail", "abort", "kill", "start"] as const) {
    it(`in an incremental of two disks: ${fault}`, DEADLINE, async () => {
      expect(await strikeEverywhere({ fault, level: "incremental", running: false })).toEqual([]);
    });
  }
});
