import { execFile } from "node:child_process";
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

export interface CertificateWishes {
  /** Names and addresses of the server, in OpenSSL's form. */
  readonly names?: string;
  /** Days from now until the server's certificate ends; negative for one that has. */
  readonly serverDays?: number;
}

/**
 * A directory with an authority of its own and what it signed for a server and a client, under the names that libnbd,
 * QEMU and nbdkit give to them.
 */
export async function makeCertificates(directory: string, wishes: CertificateWishes = {}): Promise<string> {
  const { names = "DNS:localhost,IP:127.0.0.1", serverDays = 2 } = wishes;
  await mkdir(directory, { recursive: true });
  const openssl = async (...args: string[]) => await run("openssl", args, { cwd: directory });
  const usage = ["-addext", "keyUsage=critical,keyCertSign"];
  const authority = [
    "-keyout",
    "ca-key.pem",
    "-out",
    "ca-cert.pem",
    "-subj",
    "/CN=Test authority",
    "-days",
    "2",
  ];
  await openssl("req", "-x509", ...newKey, ...authority, ...usage);

  const sign = async (who: string, days: number, extensions: string) => {
    const subject = ["-keyout", `${who}-key.pem`, "-out", `${who}.csr`, "-subj", `/CN=Test ${who}`];
    await openssl("req", "-new", ...newKey, ...subject);
    await writeFile(join(directory, `${who}.ext`), extensions);
    const signer = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial"];
    const files = ["-in", `${who}.csr`, "-out", `${who}-cert.pem`, "-extfile", `${who}.ext`];
    await openssl("x509", "-req", ...signer, "-days", `${days}`, ...files);
  };
  const common = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n";
  await sign("server", serverDays, `${common}extendedKeyUsage=serverAuth\nsubjectAltName=${names}\n`);
  await sign("client", 2, `${common}extendedKeyUsage=clientAuth\n`);
  return directory;
}

/** A server's certificate that nobody else has signed; as `ca-cert.pem` it is its own authority. */
export async function makeSelfSigned(directory: string): Promise<string> {
  await mkdir(directory, { recursive: true });
  const files = ["-keyout", "server-key.pem", "-out", "server-cert.pem"];
  const names = ["-subj", "/CN=Test server", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
  await run("openssl", ["req", "-x509", ...newKey, ...files, ...names, "-days", "2"], { cwd: directory });
  await copyFile(join(directory, "server-cert.pem"), join(directory, "ca-cert.pem"));
  return directory;
}
