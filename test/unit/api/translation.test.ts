import protobuf from "protobufjs";
import { parseNbdUri } from "nbd-client-ts";
import { describe, expect, it } from "vitest";
import { backupMessage } from "../../../src/api/backups.js";
import { blockSnapshotMessage } from "../../../src/api/block-snapshots.js";
import { checkpointMessage } from "../../../src/api/checkpoints.js";
import { doctorMessage } from "../../../src/api/doctor.js";
import { domainMessage } from "../../../src/api/domains.js";
import { toJson } from "../../../src/api/json.js";
import { protoRoot } from "../../../src/api/proto.js";
import type { FrontOffer } from "../../../src/model/front-offer.js";
import { parseFrontAddress } from "../../../src/model/front-offer.js";
import { timestampFromMs, timestampToMs } from "../../../src/api/timestamp.js";
import { fullCheckpoint, fullEntry, fullReport, fullSnapshot, fullState } from "./samples.js";

const type = (name: string): protobuf.Type => protoRoot().lookupType(`fleece.v1.${name}`);

/** Paths of fields that the message's definition has and the value lacks. */
function missing(definition: protobuf.Type, value: unknown, path: string): string[] {
  return definition.fieldsArray.flatMap((field) => {
    const here = `${path}.${field.name}`;
    const found = (value as Record<string, unknown>)[field.name];
    if (found === undefined || found === null) return [here];
    const { resolvedType } = field;
    return resolvedType instanceof protobuf.Type
      ? [found].flat().flatMap((item: unknown) => missing(resolvedType, item, here))
      : [];
  });
}

describe.each([
  ["Domain", domainMessage(fullState), ["Domain.trouble"]],
  ["Checkpoint", checkpointMessage("web01", fullCheckpoint), []],
  [
    "Backup",
    backupMessage(fullEntry),
    ["Backup.damage", "Backup.mergedInto", "Backup.verifiedTime", "Backup.verifiedDamage", "Backup.lastBoot"],
  ],
  ["BlockSnapshot", blockSnapshotMessage(fullSnapshot, 4096), ["BlockSnapshot.quiesceFailure"]],
  ["DoctorReport", doctorMessage(fullReport), []],
] as const)("the translation to %s", (name, message, apart) => {
  it("fills every field of the definition", () => {
    expect(missing(type(name), message, name)).toEqual(apart);
  });

  it("survives protobuf's own encoding", () => {
    const definition = type(name);
    const decoded = definition.decode(definition.encode(definition.fromObject(message)).finish());
    const object = definition.toObject(decoded, { longs: String, enums: String, arrays: true });
    expect(toJson(name, object as never)).toEqual(toJson(name, message as never));
  });
});

describe("backupMessage", () => {
  it("names level, consistency and formats as the API does", () => {
    expect(toJson("Backup", backupMessage(fullEntry))).toMatchObject({
      level: "INCREMENTAL",
      parent: "20261120T105300Z-000000",
      time: "2026-11-21T10:53:00.250Z",
      endTime: "2026-11-21T10:53:10.500Z",
      consistency: "CRASH",
      heldMs: "12",
      disks: [{ target: "vda", sourceFormat: "RAW", sizeBytes: "1099511627776" }],
    });
  });

  it("leaves out the parent of a full", () => {
    const { parent: _, ...manifest } = fullEntry.manifest;
    const message = backupMessage({ ...fullEntry, manifest: { ...manifest, level: "full" } });
    expect(toJson("Backup", message)).toMatchObject({ level: "FULL" });
    expect(toJson("Backup", message)).not.toHaveProperty("parent");
  });
});

describe("blockSnapshotMessage", () => {
  it("names consistency and formats as the API does, and times as moments", () => {
    expect(toJson("BlockSnapshot", blockSnapshotMessage(fullSnapshot, 4096))).toMatchObject({
      time: "2026-11-21T10:53:00.250Z",
      leaseEndTime: "2026-11-21T11:23:00.250Z",
      leaseMs: "1800000",
      consistency: "FILESYSTEM",
      heldMs: "12",
      frozenMs: "30",
      checkpoint: "c2",
      disks: [{ target: "vda", format: "QCOW2", scratchFile: "/scratch/k3j9ab00-vda.qcow2" }],
      exports: [{ domain: "web01", snapshot: "night", since: "c1" }],
    });
  });

  it("has no scratch files for a domain that was inactive, whose content is clean", () => {
    const message = blockSnapshotMessage({ ...fullSnapshot, mode: "inactive" }, 0);
    expect(message).toMatchObject({ consistency: "CLEAN", disks: [{ scratchFile: undefined }] });
  });

  it("escapes in URIs whatever a URI or a shell could take for its own", () => {
    const exports = fullSnapshot.exports.map(({ front: _, ...open }) => open);
    const [open] = blockSnapshotMessage({ ...fullSnapshot, exports }, 4096).exports;
    expect(open).toMatchObject({
      uri: "nbd+unix:///vda-a%3Ab%40c%2Bd%3De?socket=/run/a%20b%26c/it%27s%20%28here%29%3F%23/nbd.sock",
      address: undefined,
      clients: [],
    });
  });

  it.each<[string, string, FrontOffer]>([
    [
      "nbds://[2001:db8::1]:10809/web01/vda-a%3Ab%40c%2Bd%3De",
      "tcp:[2001:db8::1]:10809",
      { address: { host: "2001:db8::1", port: 10809 }, clients: ["Vendor"] },
    ],
    [
      "nbd://backup.example:1/web01/vda-a%3Ab%40c%2Bd%3De",
      "tcp:backup.example:1",
      { address: { host: "backup.example", port: 1 }, clients: "any" },
    ],
    [
      "nbd+unix:///web01/vda-a%3Ab%40c%2Bd%3De?socket=/a%20b",
      "unix:/a b",
      { address: { socketPath: "/a b" }, clients: "any" },
    ],
  ])("names an export at a front %s, which is parsed again", (uri, address, front) => {
    const exports = fullSnapshot.exports.map((open) => ({ ...open, front }));
    const [open] = blockSnapshotMessage({ ...fullSnapshot, exports }, 4096).exports;
    const clients = front.clients === "any" ? [] : front.clients;
    expect(open).toMatchObject({ exportName: "web01/vda-a:b@c+d=e", uri, address, clients });
    expect(parseNbdUri(uri)).toMatchObject({ exportName: "web01/vda-a:b@c+d=e" });
    expect(parseFrontAddress(address)).toEqual(front.address);
  });
});

describe("timestampFromMs", () => {
  it.each([0, 1, 1_795_258_380_250, -1])("keeps %i ms", (timeMs) => {
    const { nanos } = timestampFromMs(timeMs);
    expect(nanos).toBeGreaterThanOrEqual(0);
    expect(timestampToMs(timestampFromMs(timeMs))).toBe(timeMs);
  });
});
