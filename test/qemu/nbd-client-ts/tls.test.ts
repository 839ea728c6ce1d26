import { writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { connectNbd, describeExport, formatNbdUri, listExports } from "nbd-client-ts";
import type { TemporaryDirectory } from "../../support/temporary-directory.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { makeCertificates, type CertificateWishes } from "./support/certificates.js";
import { content } from "./support/content.js";
import { nbdServer } from "./support/nbd-server.js";
import { tcpPlace, unixPlace, type Place } from "./support/places.js";
import { startListening } from "./support/servers.js";

const MIB = 1 << 20;
const SIZE = 8 * MIB;
const KEY = "5a".repeat(32);

const places: Readonly<Record<string, (directory: TemporaryDirectory) => Promise<Place>>> = {
  "a Unix socket": unixPlace,
  TCP: tcpPlace,
};

interface Site {
  readonly directory: TemporaryDirectory;
  readonly place: Place;
  readonly certificates: string;
  readonly image: string;
}

async function site(where: string, wishes: CertificateWishes = {}): Promise<Site> {
  const directory = await temporaryDirectory();
  const image = directory.file("raw");
  await writeFile(image, Buffer.alloc(SIZE));
  const make = places[where];
  if (make === undefined) throw new Error(`Unknown place ${where}`);
  const certificates = await makeCertificates(directory.file("pki"), wishes);
  return { directory, place: await make(directory), certificates, image };
}

type Start = (site: Site) => Promise<unknown>;

const credentials = (certificates: string, verify: boolean) =>
  `tls-creds-x509,id=t,endpoint=server,dir=${certificates},verify-peer=${verify ? "on" : "off"}`;

/** Servers that require TLS with certificates, and where `verify` is set, one from the client. */
const servers: Readonly<Record<string, (site: Site, verify: boolean) => Promise<unknown>>> = {
  "qemu-nbd": ({ place, certificates, image }, verify) => {
    const tls = ["--object", credentials(certificates, verify), "--tls-creds", "t"];
    const args = ["-t", "-e", "8", "-x", "disk", "-f", "raw", ...tls, ...place.qemuNbd, image];
    return startListening("qemu-nbd", args, place.address);
  },
  "qemu-storage-daemon": ({ place, certificates, image }, verify) => {
    const blocks = ["--blockdev", `driver=file,node-name=d,filename=${image}`];
    const server = ["--nbd-server", `${place.daemon},tls-creds=t`];
    const exports = ["--export", "type=nbd,id=e,node-name=d,name=disk,writable=on"];
    const args = ["--object", credentials(certificates, verify), ...blocks, ...server, ...exports];
    return startListening("qemu-storage-daemon", args, place.address);
  },
  "nbdkit --tls=require": (where, verify) => nbdkit(where, "require", verify),
  "nbdkit --tls=on": (where, verify) => nbdkit(where, "on", verify),
};

async function nbdkit({ place, certificates, image }: Site, mode: string, verify: boolean): Promise<unknown> {
  const tls = [
    `--tls=${mode}`,
    `--tls-certificates=${certificates}`,
    ...(verify ? ["--tls-verify-peer"] : []),
  ];
  return await startListening("nbdkit", ["-f", ...place.nbdkit, ...tls, "file", image], place.address);
}

/** Moves enough data in both directions for many TLS records and pipelined requests. */
async function exercise(uri: string): Promise<void> {
  await using disk = await connectNbd(uri, { metaContexts: ["base:allocation"] });
  expect(disk.sizeBytes).toBe(SIZE);
  expect(disk.structuredReplies).toBe(true);
  const data = content(3 * MIB + 512, 7);
  await disk.write(MIB, data);
  await disk.flush();
  const [all, part] = await Promise.all([disk.read(0, SIZE), disk.read(MIB + 1, 1000)]);
  expect(
    Buffer.from(all)
      .subarray(MIB, MIB + data.length)
      .equals(data),
  ).toBe(true);
  expect(Buffer.from(part).equals(data.subarray(1, 1001))).toBe(true);
}

const combinations = Object.keys(servers).flatMap((server) =>
  Object.keys(places).map((where) => [server, where]),
);

describe.each(combinations)("connectNbd with %s and certificates over %s", (server = "", where = "") => {
  const start = servers[server];

  it("reads and writes, asks and lists, with and without certificates of the client", async () => {
    for (const verify of [false, true]) {
      const here = await site(where);
      await start?.(here, verify);
      const uri = formatNbdUri({
        ...here.place.uri,
        exportName: "disk",
        tls: { certificates: here.certificates },
      });
      await exercise(uri);
      expect(await describeExport(uri)).toMatchObject({ sizeBytes: SIZE, readOnly: false });
      expect((await listExports(uri)).length).toBe(1);
    }
  });
});

/** How a client with our authority sees a server: the code of its refusal. */
async function refusal(here: Site, tls: NonNullable<Parameters<typeof connectNbd>[1]>["tls"] = {}) {
  const options = { exportName: "disk", ...here.place.uri };
  const connecting = connectNbd({ ...options, tls: { certificates: here.certificates, ...tls } });
  return await connecting.then(
    async (connection) => {
      await connection.close();
      return "connected";
    },
    (error: unknown) => error,
  );
}

describe("connectNbd with TLS refuses a server whose certificate", () => {
  const start: Start = (here) => nbdkit(here, "require", false);

  it("names another host, unless that is asked for", async () => {
    for (const where of Object.keys(places)) {
      const here = await site(where, { names: "DNS:other.example" });
      await start(here);
      expect(await refusal(here)).toMatchObject({
        code: "TLS_UNTRUSTED",
        cause: { code: "ERR_TLS_CERT_ALTNAME_INVALID" },
      });
      expect(await refusal(here, { hostname: "other.example" })).toBe("connected");
      expect(await refusal(here, { verifyPeer: false })).toBe("connected");
    }
  });

  it("has expired", async () => {
    const here = await site("a Unix socket", { serverDays: -1 });
    await start(here);
    expect(await refusal(here)).toMatchObject({
      code: "TLS_UNTRUSTED",
      cause: { code: "CERT_HAS_EXPIRED" },
    });
  });

  it("is signed by another authority, also in the mode allow", async () => {
    const here = await site("a Unix socket");
    await start(here);
    const certificates = await makeCertificates(here.directory.file("other"));
    for (const mode of ["require", "allow"] as const) {
      expect(await refusal(here, { certificates, mode })).toMatchObject({ code: "TLS_UNTRUSTED" });
    }
    const { uri } = here.place;
    const connecting = connectNbd({ exportName: "disk", ...uri, tls: {} });
    await expect(connecting).rejects.toMatchObject({ code: "TLS_UNTRUSTED" });
  });
});

describe("connectNbd with TLS", () => {
  it.each(["qemu-nbd", "qemu-storage-daemon", "nbdkit --tls=require"])(
    "tells that %s refuses a client without a certificate",
    async (server) => {
      const here = await site("a Unix socket");
      await servers[server]?.(here, true);
      const certificates = await makeCertificates(here.directory.file("bare"));
      const uri = formatNbdUri({ exportName: "disk", ...here.place.uri, tls: { certificates } });
      // Of another authority, and none at all.
      await expect(connectNbd(uri)).rejects.toMatchObject({ code: "TLS_UNTRUSTED" });
      const failure = await refusal(here, { certificates, verifyPeer: false });
      expect(["TLS_FAILED", "CONNECTION_LOST"]).toContain((failure as { code?: string }).code);
    },
  );

  it("does not go on in clear with servers that have no TLS", async () => {
    const here = await site("a Unix socket");
    const plain = ["-t", "-e", "8", "-x", "disk", "-f", "raw", ...here.place.qemuNbd, here.image];
    await startListening("qemu-nbd", plain, here.place.address);
    expect(await refusal(here)).toMatchObject({ code: "TLS_NOT_OFFERED" });
    expect(await refusal(here, { mode: "allow" })).toBe("connected");
  });

  it("is required by qemu-nbd, which tells so in clear", async () => {
    const here = await site("TCP");
    await servers["qemu-nbd"]?.(here, false);
    const connecting = connectNbd({ exportName: "disk", ...here.place.uri });
    await expect(connecting).rejects.toMatchObject({ code: "TLS_REQUIRED" });
  });
});

describe("connectNbd with a shared key", () => {
  const starts: Readonly<Record<string, (here: Site, keys: string) => Promise<unknown>>> = {
    nbdkit: ({ place, image }, keys) => {
      const args = ["-f", ...place.nbdkit, "--tls=require", `--tls-psk=${keys}/keys.psk`, "file", image];
      return startListening("nbdkit", args, place.address);
    },
    "qemu-nbd": ({ place, image }, keys) => {
      const tls = ["--object", `tls-creds-psk,id=t,endpoint=server,dir=${keys}`, "--tls-creds", "t"];
      const args = ["-t", "-e", "8", "-x", "disk", "-f", "raw", ...tls, ...place.qemuNbd, image];
      return startListening("qemu-nbd", args, place.address);
    },
  };
  const combined = Object.keys(starts).flatMap((server) =>
    Object.keys(places).map((where) => [server, where]),
  );

  it.each(combined)(
    "reads and writes with %s over %s, and with the right key only",
    async (server = "", where = "") => {
      const here = await site(where);
      const pskFile = here.directory.file("keys.psk");
      await writeFile(pskFile, `alice:${KEY}\nqemu:${KEY}\n`, { mode: 0o600 });
      await starts[server]?.(here, here.directory.path);
      await exercise(
        formatNbdUri({ exportName: "disk", ...here.place.uri, tls: { pskFile, username: "alice" } }),
      );
      const options = { exportName: "disk", ...here.place.uri };
      const wrong = { identity: "alice", key: Buffer.alloc(32, 1) };
      const failing = connectNbd({ ...options, tls: { psk: wrong } });
      await expect(failing).rejects.toMatchObject({ code: "TLS_FAILED" });
    },
  );

  it("refuses a server that shows a certificate instead", async () => {
    const here = await site("a Unix socket");
    await nbdkit(here, "require", false);
    const psk = { identity: "alice", key: Buffer.from(KEY, "hex") };
    const failing = connectNbd({ exportName: "disk", ...here.place.uri, tls: { psk } });
    await expect(failing).rejects.toMatchObject({ code: "TLS_UNTRUSTED" });
  });
});

describe("connectNbd with Debian's nbd-server", () => {
  it("reads and writes in clear", async ({ skip }) => {
    const here = await site("TCP");
    const uri = formatNbdUri({ exportName: "disk", ...here.place.uri });
    const { place, image, directory } = here;
    await nbdServer(skip, { place, uri, image, configPath: directory.file("config") });
    expect(await refusal(here)).toMatchObject({ code: "TLS_NOT_OFFERED" });
    await using disk = await connectNbd(uri);
    const data = content(2 * MIB, 3);
    await disk.write(MIB, data, { fua: true });
    expect(Buffer.from(await disk.read(MIB, data.length)).equals(data)).toBe(true);
  });

  it("reads and writes with certificates", async ({ skip }) => {
    const here = await site("TCP");
    const tls = { certificates: here.certificates };
    const uri = formatNbdUri({ exportName: "disk", ...here.place.uri, tls });
    await nbdServer(skip, { ...here, uri, configPath: here.directory.file("config") });
    await using disk = await connectNbd(uri);
    const data = content(2 * MIB, 5);
    await disk.write(MIB, data);
    expect(Buffer.from(await disk.read(MIB, data.length)).equals(data)).toBe(true);
  });
});
