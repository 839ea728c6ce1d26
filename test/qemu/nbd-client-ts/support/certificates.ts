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

  await sign(directory, "server", serverDays, `extendedKeyUsage=serverAuth\nsubjectAltName=${names}\n`);
  await sign(directory, "client", 2, "extendedKeyUsage=clientAuth\n");
  return directory;
}

/** One more directory for a client, by the authority of the first. Negative `days`: the certificate has expired. */
export async function makeClientCertificates(
  directory: string,
  authority: string,
  { name, days = 2 }: { readonly name: string; readonly days?: number },
): Promise<string> {
  await mkdir(directory, { recursive: true });
  for (const file of ["ca-cert.pem", "ca-key.pem"])
    await copyFile(join(authority, file), join(directory, file));
  await sign(directory, "client", days, "extendedKeyUsage=clientAuth\n", name);
  return directory;
}

async function sign(
  directory: string,
  who: string,
  days: number,
  extensions: string,
  name = `Test ${who}`,
): Promise<void> {
  const openssl = async (...args: string[]) => await run("openssl", args, { cwd: directory });
  await openssl(
    "req",
    "-new",
    ...newKey,
    "-keyout",
    `${who}-key.pem`,
    "-out",
    `${who}.csr`,
    "-subj",
    `/CN=${name}`,
  );
  const common = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n";
  await writeFile(join(directory, `${who}.ext`), common + extensions);
  const signer = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial"];
  const files = ["-in", `${who}.csr`, "-out", `${who}-cert.pem`, "-extfile", `${who}.ext`];
  await openssl("x509", "-req", ...signer, "-days", `${days}`, ...files);
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
