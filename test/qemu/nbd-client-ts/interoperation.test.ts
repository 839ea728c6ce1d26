import { execFile } from "node:child_process";
import { readFile, rm, writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { connectNbd, formatNbdUri, type NbdConnection, type NbdUriTls } from "nbd-client-ts";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";
import { TestVm } from "../../support/vm.js";
import { makeCertificates, makeSelfSigned } from "./support/certificates.js";
import { content } from "./support/content.js";
import { nbdServer } from "./support/nbd-server.js";
import { tcpPlace, unixPlace, type Place } from "./support/places.js";
import { startListening } from "./support/servers.js";

const run = promisify(execFile);
const KIB = 1024;
const MIB = 1 << 20;
const SIZE = 3 * MIB + 64 * KIB;
const HOLE = { offset: MIB, length: MIB };
const COPY_MS = 60_000;
const KEY = "5a".repeat(32);

type Server = "qemu-nbd" | "qemu-storage-daemon" | "QEMU" | "nbdkit" | "nbd-server";
type Transport = "unix" | "tcp";
type Tls = "plain" | "x509" | "psk";
type Replies = "extended" | "structured" | "simple";
type Access = "writable" | "read-only";

/** `minimum`: of the server's block sizes; 512 is also what the client takes where the server tells none. */
type Combination = readonly [Server, Transport, Tls, Replies, Access, minimum: number];

const combinations: readonly Combination[] = [
  ["qemu-nbd", "unix", "plain", "structured", "writable", 1],
  ["qemu-nbd", "unix", "plain", "structured", "writable", 4096],
  ["qemu-nbd", "tcp", "plain", "structured", "read-only", 1],
  ["qemu-nbd", "unix", "x509", "structured", "read-only", 1],
  ["qemu-nbd", "tcp", "x509", "structured", "writable", 4096],
  ["qemu-nbd", "unix", "psk", "structured", "writable", 1],
  ["qemu-nbd", "tcp", "psk", "structured", "read-only", 4096],

  ["qemu-nbd", "unix", "plain", "extended", "writable", 1],
  ["qemu-nbd", "tcp", "x509", "extended", "writable", 4096],

  ["qemu-storage-daemon", "unix", "plain", "extended", "writable", 512],
  ["qemu-storage-daemon", "tcp", "psk", "extended", "read-only", 1],
  ["qemu-storage-daemon", "unix", "plain", "structured", "writable", 1],
  ["qemu-storage-daemon", "unix", "plain", "structured", "read-only", 4096],
  ["qemu-storage-daemon", "tcp", "plain", "structured", "writable", 512],
  ["qemu-storage-daemon", "unix", "x509", "structured", "writable", 4096],
  ["qemu-storage-daemon", "tcp", "x509", "structured", "read-only", 1],
  ["qemu-storage-daemon", "unix", "psk", "structured", "read-only", 1],
  ["qemu-storage-daemon", "tcp", "psk", "structured", "writable", 1],

  ["QEMU", "unix", "plain", "structured", "read-only", 1],
  ["QEMU", "unix", "plain", "structured", "writable", 4096],
  ["QEMU", "tcp", "plain", "structured", "writable", 1],
  ["QEMU", "unix", "psk", "structured", "writable", 1],
  ["QEMU", "tcp", "x509", "structured", "read-only", 1],

  ["QEMU", "unix", "plain", "extended", "writable", 1],

  ["nbdkit", "unix", "plain", "structured", "writable", 1],
  ["nbdkit", "unix", "plain", "simple", "writable", 1],
  ["nbdkit", "unix", "plain", "simple", "read-only", 4096],
  ["nbdkit", "unix", "plain", "structured", "writable", 65536],
  ["nbdkit", "tcp", "plain", "structured", "read-only", 1],
  ["nbdkit", "tcp", "plain", "simple", "writable", 4096],
  ["nbdkit", "unix", "x509", "structured", "writable", 4096],
  ["nbdkit", "unix", "x509", "simple", "read-only", 1],
  ["nbdkit", "tcp", "x509", "simple", "writable", 1],
  ["nbdkit", "unix", "psk", "simple", "writable", 4096],
  ["nbdkit", "tcp", "psk", "structured", "read-only", 1],

  ["nbd-server", "unix", "plain", "simple", "writable", 512],
  ["nbd-server", "unix", "x509", "simple", "read-only", 512],
  ["nbd-server", "tcp", "plain", "simple", "read-only", 512],
  ["nbd-server", "tcp", "x509", "simple", "writable", 512],
];

interface Setting {
  readonly place: Place;
  readonly uri: string;
  readonly directory: TemporaryDirectory;
  /** Holds what TLS needs, in the file names of all servers. */
  readonly secrets: string;
  readonly image: string;
  readonly tls: Tls;
  readonly replies: Replies;
  readonly readOnly: boolean;
  readonly minimum: number;
  readonly skip: (note: string) => void;
}

/** How an object of QEMU is called that has the server's credentials, in the order of a command line. */
function qemuCredentials({ tls, secrets }: Setting): Record<string, string | boolean> {
  const common = { "qom-type": `tls-creds-${tls}`, id: "t", endpoint: "server", dir: secrets };
  return tls === "x509" ? { ...common, "verify-peer": false } : common;
}

function qemuObject(setting: Setting): string[] {
  const { "qom-type": type, ...properties } = qemuCredentials(setting);
  const text = Object.entries(properties).map(([name, value]) => {
    return `${name}=${value === true ? "on" : value === false ? "off" : value}`;
  });
  return setting.tls === "plain" ? [] : ["--object", [type, ...text].join(",")];
}

/** A raw image on blocks of the wanted size. */
function qemuNode({ image, minimum, readOnly }: Setting) {
  return {
    driver: "blkdebug",
    "node-name": "d",
    "read-only": readOnly,
    ...(minimum === 1 ? {} : { align: minimum }),
    image: { driver: "file", filename: image, "read-only": readOnly },
  };
}

const qemuNodeJson = (setting: Setting) => JSON.stringify(qemuNode(setting));

const servers: Readonly<Record<Server, (setting: Setting) => Promise<unknown>>> = {
  "qemu-nbd": (setting) => {
    const { place, tls, readOnly } = setting;
    const creds = tls === "plain" ? [] : [...qemuObject(setting), "--tls-creds", "t"];
    const access = readOnly ? ["-r"] : [];
    const args = ["-t", "-e", "8", "-x", "disk", ...creds, ...access, ...place.qemuNbd];
    return startListening("qemu-nbd", [...args, `json:${qemuNodeJson(setting)}`], place.address);
  },
  "qemu-storage-daemon": (setting) => {
    const { place, tls, readOnly } = setting;
    const listen = `${place.daemon},max-connections=0${tls === "plain" ? "" : ",tls-creds=t"}`;
    const exported = `type=nbd,id=e,node-name=d,name=disk,writable=${readOnly ? "off" : "on"}`;
    const args = ["--blockdev", qemuNodeJson(setting), "--nbd-server", listen, "--export", exported];
    return startListening("qemu-storage-daemon", [...qemuObject(setting), ...args], place.address);
  },
  QEMU: async (setting) => {
    const { place, tls, readOnly, directory } = setting;
    const vm = untilTestEnds(await TestVm.start({ directory: directory.path, disks: [], paused: true }));
    if (tls !== "plain") await vm.qmp("object-add", qemuCredentials(setting));
    await vm.qmp("blockdev-add", qemuNode(setting));
    const { address } = place;
    const addr =
      "path" in address
        ? { type: "unix", data: address }
        : { type: "inet", data: { host: address.host, port: String(address.port) } };
    await vm.qmp("nbd-server-start", { addr, ...(tls === "plain" ? {} : { "tls-creds": "t" }) });
    const exported = { type: "nbd", id: "e", "node-name": "d", name: "disk", writable: !readOnly };
    await vm.qmp("block-export-add", exported);
  },
  nbdkit: ({ place, tls, secrets, replies, readOnly, minimum, image }) => {
    const args: string[] = {
      plain: [],
      x509: ["--tls=require", `--tls-certificates=${secrets}`],
      psk: ["--tls=require", `--tls-psk=${secrets}/keys.psk`],
    }[tls];
    args.push(...(replies === "simple" ? ["--no-sr"] : []), ...(readOnly ? ["-r"] : []));
    const sizes = [`blocksize-minimum=${minimum}`, "blocksize-preferred=64K", "blocksize-maximum=1M"];
    const plugin = ["--filter=blocksize-policy", "file", image, ...sizes, "blocksize-error-policy=error"];
    return startListening("nbdkit", ["-f", ...place.nbdkit, ...args, ...plugin], place.address);
  },
  "nbd-server": (setting) => {
    const { skip, tls, directory, secrets, ...others } = setting;
    const certificates = tls === "plain" ? {} : { certificates: secrets };
    return nbdServer(skip, { ...others, configPath: directory.file("config"), ...certificates });
  },
};

let shared: TemporaryDirectory;
beforeAll(async () => {
  shared = await TemporaryDirectory.create();
  await makeCertificates(shared.path);
  await makeSelfSigned(shared.file("self"));
  await writeFile(shared.file("keys.psk"), `alice:${KEY}\n`, { mode: 0o600 });
});
afterAll(async () => shared[Symbol.asyncDispose]());

/** The part of a URI with which both clients are trusted. */
function clientTls(tls: Tls): { readonly tls?: NbdUriTls } {
  if (tls === "plain") return {};
  return {
    tls:
      tls === "psk" ? { pskFile: shared.file("keys.psk"), username: "alice" } : { certificates: shared.path },
  };
}

async function imageWithHole(path: string): Promise<Buffer> {
  const model = content(SIZE, 1);
  model.fill(0, HOLE.offset, HOLE.offset + HOLE.length);
  await writeFile(path, model.subarray(0, HOLE.offset));
  const rest = HOLE.offset + HOLE.length;
  await run("truncate", ["-s", String(rest), path]);
  await writeFile(path, model.subarray(rest), { flag: "a" });
  return model;
}

/** What libnbd's own program reads, over one connection: nbd-server in the foreground serves no more. */
async function nbdcopyContent(uri: string, path: string): Promise<Buffer> {
  await run("nbdcopy", ["--connections=1", uri, path], { timeout: COPY_MS });
  const bytes = await readFile(path);
  await rm(path);
  return bytes;
}

function expectSame(actual: Uint8Array, expected: Uint8Array): void {
  // Not toEqual: its text for megabytes that differ would take minutes.
  expect(Buffer.compare(actual, expected)).toBe(0);
}

async function expectExtents(disk: NbdConnection): Promise<void> {
  const zero = [];
  let end = 0;
  for await (const { offset, length, flags } of disk.extents()) {
    expect(offset).toBe(end);
    end += length;
    if (((flags["base:allocation"] ?? 0) & 2) !== 0) zero.push({ offset, length });
  }
  expect(end).toBe(SIZE);
  expect(zero).toEqual([HOLE]);
}

describe("NbdConnection and nbdcopy see the same", () => {
  it.for(combinations)("in %s over %s, %s, %s replies, %s, minimum block size %d", async (row, { skip }) => {
    const [server, transport, tls, replies, access, minimum] = row;
    const directory = await temporaryDirectory();
    const image = directory.file("raw");
    const model = await imageWithHole(image);
    const place = transport === "unix" ? await unixPlace(directory) : await tcpPlace();
    const uri = formatNbdUri({ exportName: "disk", ...place.uri, ...clientTls(tls) });
    const readOnly = access === "read-only";
    const secrets = shared.path;
    const setting = { place, uri, directory, secrets, image, tls, replies, readOnly, minimum, skip };
    await servers[server](setting);

    const extendedHeaders = replies !== "structured";
    const options = { metaContexts: ["base:allocation"], optionalContexts: true, extendedHeaders };
    const disk = untilTestEnds(await connectNbd(uri, options));
    if (replies === "extended" && !disk.extendedHeaders) {
      skip(`cannot run here: this ${server} does not offer extended headers`);
    }
    expect(disk).toMatchObject({
      sizeBytes: SIZE,
      readOnly,
      extendedHeaders: replies === "extended",
      // Debian 13's nbd-server has structured replies, Debian 12's has not.
      ...(server === "nbd-server" ? {} : { structuredReplies: replies !== "simple" }),
      contexts: replies === "simple" ? [] : ["base:allocation"],
      blockSize: { minimumBytes: minimum },
    });
    expectSame(await disk.read(0, SIZE), model);
    expectSame(await disk.read(4095, 70_001), model.subarray(4095, 4095 + 70_001));
    if (replies !== "simple") await expectExtents(disk);

    const data = content(10 * 64 * KIB, 2);
    const at = 12 * 64 * KIB; // from data into the hole
    if (readOnly) {
      // By this side: a server's refusal would be REQUEST_FAILED.
      await expect(disk.write(at, data)).rejects.toMatchObject({ code: "READ_ONLY" });
    } else {
      await disk.write(at, data);
      await disk.flush();
      model.set(data, at);
    }
    const ours = await disk.read(0, SIZE);
    expectSame(ours, model);
    await disk.close();
    if (server === "nbd-server") await servers[server](setting); // it has served its one client
    expectSame(await nbdcopyContent(uri, directory.file("copy")), ours);
  });
});

describe("connectNbd with a server that has signed its certificate itself", () => {
  // nbdkit: QEMU does not start with such a certificate.
  it.for(["unix", "tcp"])(
    "trusts it over %s only if it is given as the authority",
    async (transport, { skip }) => {
      const directory = await temporaryDirectory();
      const image = directory.file("raw");
      await imageWithHole(image);
      const place = transport === "unix" ? await unixPlace(directory) : await tcpPlace();
      const to = { exportName: "disk", ...place.uri };
      await servers.nbdkit({
        ...{ place, uri: formatNbdUri(to), directory, secrets: shared.file("self"), image },
        ...{ tls: "x509", replies: "structured", readOnly: true, minimum: 1, skip },
      });
      // Trusting what Node trusts, and trusting another authority.
      for (const tls of [{}, { certificates: shared.path }]) {
        await expect(connectNbd({ ...to, tls })).rejects.toMatchObject({ code: "TLS_UNTRUSTED" });
      }
      const ca = await readFile(shared.file("self/server-cert.pem"));
      await using disk = await connectNbd({ ...to, tls: { ca } });
      expect(disk.sizeBytes).toBe(SIZE);
    },
  );
});
