import { describe, expect, it } from "vitest";
import type { CreateDomainSnapshotRequest } from "../../../src/model/domain-snapshot.js";
import { joinWishes } from "../../../src/model/snapshot-wishes.js";

const options: CreateDomainSnapshotRequest = { domain: "vm" };

describe("joinWishes", () => {
  it("takes from each what the other does not say", () => {
    const document = {
      name: "a",
      memory: false,
      disks: [{ disk: "vda", kind: "external", overlay: "/o" }],
    } as const;
    expect(joinWishes({ ...options, description: "d", live: true }, document, [])).toEqual({
      ...{ domain: "vm", name: "a", description: "d", live: true, diskOnly: true, kind: "external" },
      disks: [{ disk: "vda", kind: "external", overlay: "/o" }],
    });
  });

  it("includes the others that a document does not name", () => {
    const document = {
      disks: [
        { disk: "vda", overlay: "/o" },
        { disk: "vdb", kind: "no" },
      ],
    } as const;
    const { disks } = joinWishes(options, document, ["vda", "vdb", "vdc"]);
    expect(disks?.map(({ disk }) => disk)).toEqual(["vda", "vdc"]);
  });

  it.each([
    [{ name: "a" }, { name: "b" }, "name, got a from the options and b from the document"],
    [{ diskOnly: true }, { memory: true }, "diskOnly, got true from the options and false from the document"],
    [{ memoryPath: "/a" }, { memoryPath: "/b" }, "memoryPath, got /a from the options and /b"],
    [
      { kind: "internal" as const },
      { disks: [{ disk: "a", kind: "external" as const }] },
      "kind, got internal",
    ],
    [{ disks: [{ disk: "a" }] }, { disks: [{ disk: "b" }] }, "disks, got a from the options and b"],
    [
      {},
      {
        disks: [
          { disk: "a", kind: "external" as const },
          { disk: "b", kind: "internal" as const },
        ],
      },
      "Expected disks of one kind",
    ],
    [
      {},
      { kind: "internal" as const, disks: [{ disk: "a", kind: "external" as const }] },
      "and memory of the same",
    ],
  ])("names both values where they differ: %j and %j", (said, document, message) => {
    expect(() => joinWishes({ ...options, ...said }, document, [])).toThrow(
      expect.objectContaining({
        code: "INVALID_ARGUMENT",
        message: expect.stringContaining(message) as string,
      }),
    );
  });

  it("accepts the same from both", () => {
    expect(joinWishes({ ...options, name: "a" }, { name: "a" }, [])).toMatchObject({ name: "a" });
  });
});
