import { writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { connectNbd, connectNbdPool, listExports } from "nbd-client-ts";
import type { NbdFrontOptions } from "../../../src/drivers/front/nbd-front.js";
import type { ExportGrant } from "../../../src/ports/export-front.js";
import { runCommand } from "../../guest/commands.js";
import { serverFiles, startFront, type TestFront } from "../../support/front.js";
import { qemuImg, writeImage } from "../../support/image-tool.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { makeCertificates, makeClientCertificates } from "../nbd-client-ts/support/certificates.js";
import { content } from "../nbd-client-ts/support/content.js";
import { startListening, storageDaemon } from "../nbd-client-ts/support/servers.js";

const MIB = 1 << 20;
const SIZE = 24 * MIB;
const BITMAP = "qemu:dirty-bitmap:since";

interface Site extends TestFront {
  /** For one more directory with certificates. */
  readonly file: (name: string) => string;
  readonly certificates: string;
  readonly socketPath: string;
  readonly image: string;
  readonly data: Buffer;
  grant(changes?: Partial<ExportGrant>): void;
  uri(exportName?: string, certificates?: string): string;
}

/** A storage daemon with two disks on a private socket, one of them with a bitmap, and a front before it. */
async function site(options: Partial<NbdFrontOptions> = {}): Promise<Site> {
  const directory = await temporaryDirectory();
  const file = (name: string) => directory.file(name);
  const data = content(SIZE, 11);
  data.fill(0, 5 * MIB, 9 * MIB);
  const image = file("disk.qcow2");
  await writeFile(file("raw"), data);
  await qemuImg("convert", "-f", "raw", "-O", "qcow2", file("raw"), image);
  await qemuImg("bitmap", "--add", image, "since");
  data.fill(0x77, 12 * MIB, 13 * MIB);
  await writeImage(image, "qcow2", `write -P 0x77 ${12 * MIB} ${MIB}`);
  const socketPath = file("private");
  const node = (name: string) =>
    `driver=qcow2,node-name=${name},read-only=on,file.driver=file,file.filename=${image},file.locking=off`;
  await storageDaemon(
    socketPath,
    ...["--blockdev", node("d"), "--blockdev", node("e")],
    ...["--export", "type=nbd,id=x,node-name=d,name=vda-private,description=A disk,bitmaps.0=since"],
    ...["--export", "type=nbd,id=y,node-name=e,name=vdb-private"],
  );
  const certificates = await makeCertificates(file("pki"));
  const started = await startFront({ tls: await serverFiles(certificates), ...options });
  return {
    ...started,
    file,
    certificates,
    socketPath,
    image,
    data,
    grant: (changes = {}) =>
      started.front.grant({
        exportName: "web01/vda",
        backend: { socketPath, exportName: "vda-private" },
        clients: ["Test client"],
        idleMs: 60_000,
        ...changes,
      }),
    uri: (exportName = "web01/vda", from = certificates) =>
      `nbds://127.0.0.1:${started.port}/${encodeURIComponent(exportName)}?tls-certificates=${from}`,
  };
}

const privately = (here: Site) => `nbd+unix:///vda-private?socket=${here.socketPath}`;

async function nbdinfo(...args: string[]): Promise<unknown> {
  return JSON.parse((await runCommand("nbdinfo", ["--json", ...args])).toString());
}

/** How many bytes two reads differ in, without printing them. */
const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0;

describe("NbdFront before a storage daemon", () => {
  it("shows nbdinfo what the private socket shows, under the granted name", async () => {
    const here = await site();
    here.grant();
    const through = (await nbdinfo(here.uri())) as { protocol: string; exports: Record<string, unknown>[] };
    const direct = (await nbdinfo(privately(here))) as typeof through;
    const [seen, real] = [through.exports[0], direct.exports[0]];
    expect(through).toMatchObject({ TLS: true, structured: true });
    expect(seen).toMatchObject({ "export-name": "web01/vda", "export-size": SIZE, is_read_only: true });
    expect(seen).toMatchObject({ can_multi_conn: true, description: "A disk" });
    expect(seen?.["contexts"]).toEqual(real?.["contexts"]);
    for (const context of ["base:allocation", BITMAP]) {
      const map = await nbdinfo(`--map=${context}`, here.uri());
      expect(map).toEqual(await nbdinfo(`--map=${context}`, privately(here)));
      expect((map as unknown[]).length).toBeGreaterThan(1);
    }
  });

  it("lets nbdcopy, qemu-img and our client read all of the disk", async () => {
    const here = await site();
    here.grant();
    await runCommand("nbdcopy", [here.uri(), here.file("copied")]);
    await runCommand("cmp", [here.file("copied"), await rawOf(here)]);

    const tls = `tls-creds-x509,id=t,endpoint=client,dir=${here.certificates}`;
    const server = `server.type=inet,server.host=127.0.0.1,server.port=${here.port}`;
    const source = `driver=nbd,${server},export=web01/vda,tls-creds=t`;
    const convert = ["convert", "--object", tls, "--image-opts", source, "-O", "raw", here.file("converted")];
    await runCommand("qemu-img", convert);
    await runCommand("cmp", [here.file("converted"), await rawOf(here)]);

    await using pool = await connectNbdPool(here.uri(), { metaContexts: ["base:allocation", BITMAP] });
    expect(pool.connections).toBe(4);
    expect(same(await pool.read(0, SIZE), here.data)).toBe(true);
    const dirty = [];
    for await (const { offset, length, flags } of pool.extents()) {
      if (flags[BITMAP] === 1) dirty.push([offset, length]);
    }
    expect(dirty).toEqual([[12 * MIB, MIB]]);
    const [stats] = here.front.stats().grants;
    expect(stats?.bytesSent).toBeGreaterThan(3 * (SIZE - 4 * MIB));
    expect(stats?.connections).toBe(4);
  });

  it("lists only what is granted to the client, and answers alike for what is not granted and what is not there", async () => {
    const here = await site();
    here.grant();
    here.grant({ exportName: "all", clients: "any" });
    here.grant({ exportName: "other", clients: ["Somebody else"] });
    expect((await listExports(here.uri(""))).map(({ name }) => name)).toEqual(["web01/vda", "all"]);
    const answers = [];
    for (const name of ["other", "vda-private", "nonsense"]) {
      const error: unknown = await connectNbd(here.uri(name)).catch((cause: unknown) => cause);
      answers.push([(error as { code: string }).code, (error as { serverText: string }).serverText]);
    }
    expect(new Set(answers.map((answer) => answer.join())).size).toBe(1);
    expect(answers[0]?.[0]).toBe("EXPORT_NOT_FOUND");
    expect(here.log.reasons).toEqual(Array(3).fill("the export is not granted to it"));
    expect(here.log.lines).toContainEqual(
      expect.objectContaining({ client: "Test client", exportName: "other" }),
    );
  });

  it("goes by the fingerprint of a certificate, too", async () => {
    const here = await site();
    const shown = await runCommand("openssl", [
      ...["x509", "-in", `${here.certificates}/client-cert.pem`, "-noout", "-fingerprint", "-sha256"],
    ]);
    const digits = shown.toString().split("=")[1]?.trim().replaceAll(":", "").toLowerCase() ?? "";
    here.grant({ clients: [`sha256:${digits}`] });
    await using disk = await connectNbd(here.uri());
    expect(disk.readOnly).toBe(true);
  });

  it("serves the same over a Unix socket that is for this user alone", async () => {
    const here = await site();
    here.grant();
    const socketPath = here.file("front");
    await here.front.listen({ socketPath });
    expect((await runCommand("stat", ["-c", "%a", socketPath])).toString().trim()).toBe("600");
    const uri = `nbds+unix:///web01%2Fvda?socket=${socketPath}&tls-certificates=${here.certificates}`;
    await using disk = await connectNbd(uri);
    expect(same(await disk.read(12 * MIB - 5, 10), here.data.subarray(12 * MIB - 5, 12 * MIB + 5))).toBe(
      true,
    );
    await expect(here.front.listen({ socketPath })).rejects.toMatchObject({ code: "ALREADY_EXISTS" });
  });
});

async function rawOf(here: Site): Promise<string> {
  await writeFile(here.file("expected"), here.data);
  return here.file("expected");
}

describe("NbdFront refuses, and logs why,", () => {
  const refused = async (here: Site, certificates: string, reason: RegExp) => {
    await expect(connectNbd(here.uri("web01/vda", certificates))).rejects.toThrow();
    await expect(runCommand("nbdinfo", [here.uri("web01/vda", certificates)])).rejects.toThrow();
    // nbdinfo may ask more than once.
    await expect.poll(() => here.log.reasons.length).toBeGreaterThanOrEqual(2);
    for (const logged of here.log.reasons) expect(logged).toMatch(reason);
    const refusals = here.log.reasons.length;
    expect(here.front.stats()).toMatchObject({ refusals, grants: [{ connectionsTotal: 0 }] });
  };

  it("a client without a certificate", async () => {
    const here = await site();
    here.grant({ clients: "any" });
    const bare = here.file("bare");
    await runCommand("mkdir", [bare]);
    await runCommand("cp", [`${here.certificates}/ca-cert.pem`, bare]);
    await refused(here, bare, /it has no certificate/);
  });

  it("a certificate of another authority", async () => {
    const here = await site();
    here.grant({ clients: "any" });
    const other = await makeCertificates(here.file("other"));
    await runCommand("cp", [`${here.certificates}/ca-cert.pem`, other]);
    await refused(here, other, /its certificate is not trusted: (UNABLE|DEPTH|SELF|CERT_SIG)/);
  });

  it("an expired certificate", async () => {
    const here = await site();
    here.grant({ clients: "any" });
    const expired = { name: "Test client", days: -1 };
    const directory = await makeClientCertificates(here.file("expired"), here.certificates, expired);
    await refused(here, directory, /its certificate is not trusted: CERT_HAS_EXPIRED/);
  });

  it("a certificate without a grant", async () => {
    const here = await site();
    here.grant({ clients: ["Test client"] });
    const stranger = { name: "Stranger" };
    const directory = await makeClientCertificates(here.file("stranger"), here.certificates, stranger);
    await refused(here, directory, /the export is not granted to it/);
  });

  it("an export that is writable", async () => {
    const here = await site();
    const path = here.file("writable");
    await writeFile(here.file("scratch"), Buffer.alloc(MIB));
    const args = ["-t", "-e", "8", "-x", "disk", "-k", path, "-f", "raw", here.file("scratch")];
    await startListening("qemu-nbd", args, { path });
    here.grant({ backend: { socketPath: path, exportName: "disk" } });
    await refused(here, here.certificates, /the export is writable/);
  });
});

describe("NbdFront ends", () => {
  it("the connections of a grant that is revoked, while they read", async () => {
    const here = await site();
    here.grant();
    here.grant({ exportName: "other" });
    await using disk = await connectNbd(here.uri());
    await using other = await connectNbd(here.uri("other"));
    const reading = (async () => {
      for (;;) await disk.read(0, SIZE);
    })();
    await expect.poll(() => here.front.stats().grants[0]?.bytesSent ?? 0).toBeGreaterThan(SIZE);
    here.front.revoke("web01/vda");
    await expect(reading).rejects.toMatchObject({ code: "CONNECTION_LOST" });
    await expect(connectNbd(here.uri())).rejects.toMatchObject({ code: "EXPORT_NOT_FOUND" });
    expect((await other.read(0, 1)).length).toBe(1);
  });

  it("them also when the lease ends, unless it was renewed", async () => {
    const here = await site();
    here.grant({ untilMs: Date.now() + 3_000 });
    await using disk = await connectNbd(here.uri());
    here.front.renew("web01/vda", Date.now() + 3_600_000);
    expect((await disk.read(0, 1)).length).toBe(1);
    here.front.renew("web01/vda", Date.now() + 50);
    expect(await disk.closed).toMatchObject({ code: "CONNECTION_LOST" });
    expect(here.front.stats().grants).toEqual([]);
    expect(() => here.front.renew("web01/vda", Date.now() + 1000)).toThrow(
      expect.objectContaining({ code: "EXPORT_NOT_FOUND" }) as Error,
    );
  });

  it("a connection that is idle", async () => {
    const here = await site();
    here.grant({ idleMs: 300 });
    await using disk = await connectNbd(here.uri());
    expect(await disk.closed).toMatchObject({ code: "CONNECTION_LOST" });
    expect(here.log.lines.at(-1)).toMatchObject({ why: "idle", exportName: "web01/vda" });
  });

  it("everything when it is closed", async () => {
    const here = await site();
    here.grant();
    await using disk = await connectNbd(here.uri());
    await here.front.close();
    await here.front.close();
    expect(await disk.closed).toMatchObject({ code: "CONNECTION_LOST" });
    await expect(connectNbd(here.uri())).rejects.toMatchObject({ code: "CONNECT_FAILED" });
  });
});
