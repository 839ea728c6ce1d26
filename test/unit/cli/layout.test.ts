import { afterEach, describe, expect, it } from "vitest";
import { timestampFromText } from "../../../src/api/timestamp.js";
import { facts, formatTime, table } from "../../../src/cli/layout.js";
import { checkpointTree } from "../../../src/cli/checkpoint-view.js";
import { backupList } from "../../../src/cli/backup-view.js";
import { domainDetails, domainList } from "../../../src/cli/domain-view.js";
import { backupMessage } from "../../../src/api/backups.js";
import { domainMessage } from "../../../src/api/domains.js";
import { fullState } from "../api/samples.js";

describe("table", () => {
  it("aligns columns, without lines, colours or space at line ends", () => {
    const rows = [
      { name: "a", size: "1 B" },
      { name: "long", size: "1023 B" },
    ];
    const columns = [
      { head: "NAME", cell: ({ name }: { name: string }) => name },
      { head: "SIZE", cell: ({ size }: { size: string }) => size, align: "right" as const },
      { head: "X", cell: () => "" },
    ];
    expect(table(rows, columns, false)).toBe("NAME    SIZE  X\na        1 B\nlong  1023 B\n");
  });

  it("keeps each row on its line", () => {
    const text = table([{ name: "a\nb\u001b" }], [{ head: "NAME", cell: ({ name }) => name }], false);
    expect(text).toBe("NAME\na\\nb\\u001b\n");
  });
});

describe("facts", () => {
  it("leaves out what has no value", () => {
    expect(
      facts([
        ["A", "1"],
        ["Long", "2"],
        ["None", undefined],
      ]),
    ).toBe("A     1\nLong  2\n");
  });
});

describe("formatTime", () => {
  const zone = process.env["TZ"];
  afterEach(() => {
    if (zone === undefined) delete process.env["TZ"];
    else process.env["TZ"] = zone;
  });

  it.each([
    ["UTC", "2026-11-21T10:53:00Z"],
    ["Asia/Kolkata", "2026-11-21T16:23:00+05:30"],
    ["America/St_Johns", "2026-11-21T07:23:00-03:30"],
  ])("prints RFC 3339 in the zone %s", (tz, expected) => {
    process.env["TZ"] = tz;
    expect(formatTime(timestampFromText("2026-11-21T10:53:00.900Z"))).toBe(expected);
  });
});

describe("checkpointTree", () => {
  it("draws branches, and takes a checkpoint whose parent is not listed for a root", () => {
    const checkpoint = (name: string, parent?: string) => ({
      ...{ domain: "d", name, parent, order: 1, time: { seconds: 0, nanos: 0 }, valid: true, disks: [] },
    });
    const checkpoints = [
      checkpoint("a", "gone"),
      checkpoint("b", "a"),
      checkpoint("c", "a"),
      checkpoint("d", "b"),
    ];
    expect(checkpointTree({ checkpoints })).toBe("a\n├─ b\n│  └─ d\n└─ c\n");
  });
});

describe("lists", () => {
  it("say what is wrong with a damaged backup", () => {
    const entry = { id: "b1", repository: "r", domain: "d", damage: "manifest.json is torn" };
    const backups = [backupMessage(entry)];
    expect(backupList({ backups }, false)).toMatch(/^b1 +d +damaged +.*\n\nb1: manifest\.json is torn\n$/m);
  });

  it("say why a domain could not be looked at", () => {
    const domains = [{ name: "d", state: "UNKNOWN", disks: [], trouble: "No socket" } as const];
    expect(domainList({ domains }, false)).toMatch(/^d +unknown .*\n\nd: No socket\n$/m);
  });

  it("say what keeps a disk from being backed up, and what bitmaps others have", () => {
    const text = domainDetails(domainMessage(fullState), false);
    expect(text).toContain("Disk vda cannot be backed up: another tool's filter is on it (FOREIGN_FILTER)\n");
    expect(text).toContain("Disk vda has bitmaps of other programs: theirs\n");
  });
});
