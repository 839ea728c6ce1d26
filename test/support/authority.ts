import { execFile } from "node:child_process";
import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { X509Certificate } from "node:crypto";

const run = promisify(execFile);
const DAY_MS = 24 * 3600 * 1000;

export interface CertificateWishes {
  /** In days from now. */
  readonly fromDays?: number;
  readonly untilDays?: number;
  /** Default: that of a client. */
  readonly usage?: "clientAuth" | "serverAuth";
  /** In OpenSSL's form, default: none. */
  readonly names?: string;
}

/** What TLS needs of one side, as files and as their content. */
export interface Credentials {
  readonly certificate: string;
  readonly key: string;
  readonly ca: string;
  readonly content: { readonly cert: Buffer; readonly key: Buffer; readonly ca: Buffer };
  /** As the agent writes it. */
  readonly fingerprint: string;
}

/** A certificate authority in a directory of its own. */
export class Authority {
  readonly #directory: string;

  private constructor(directory: string) {
    this.#directory = directory;
  }

  static async create(directory: string): Promise<Authority> {
    await mkdir(directory, { recursive: true });
    const authority = new Authority(directory);
    await writeFile(join(directory, "index.txt"), "");
    await writeFile(join(directory, "ca.cnf"), CONFIG);
    const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key"];
    const rest = ["-out", "ca.pem", "-subj", "/CN=Test authority", "-days", "30"];
    await authority.#openssl("req", "-x509", ...key, ...rest, "-addext", "keyUsage=critical,keyCertSign");
    return authority;
  }

  /** Several common names make a subject with all of them. */
  async issue(commonNames: string | readonly string[], wishes: CertificateWishes = {}): Promise<Credentials> {
    const { fromDays = -1, untilDays = 2, usage = "clientAuth", names } = wishes;
    const stem = `c${(await readFile(join(this.#directory, "index.txt"), "utf8")).split("\n").length}`;
    const subject = [commonNames]
      .flat()
      .map((name) => `/CN=${name}`)
      .join("");
    const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", `${stem}.key`];
    await this.#openssl("req", "-new", ...key, "-out", `${stem}.csr`, "-subj", subject, "-multivalue-rdn");
    const alternative = names === undefined ? "" : `subjectAltName=${names}\n`;
    await writeFile(
      join(this.#directory, `${stem}.ext`),
      `basicConstraints=critical,CA:FALSE\nextendedKeyUsage=${usage}\n${alternative}`,
    );
    const dates = ["-startdate", openSslTime(fromDays), "-enddate", openSslTime(untilDays)];
    const files = ["-in", `${stem}.csr`, "-out", `${stem}.pem`, "-extfile", `${stem}.ext`];
    await this.#openssl("ca", "-batch", "-config", "ca.cnf", "-notext", "-preserveDN", ...dates, ...files);
    await chmod(join(this.#directory, `${stem}.key`), 0o600);
    const path = (name: string): string => join(this.#directory, name);
    const place = { certificate: path(`${stem}.pem`), key: path(`${stem}.key`), ca: path("ca.pem") };
    const [cert, privateKey, ca] = await Promise.all([
      readFile(place.certificate),
      readFile(place.key),
      readFile(place.ca),
    ]);
    const digest = new X509Certificate(cert).fingerprint256.replaceAll(":", "").toLowerCase();
    return { ...place, content: { cert, key: privateKey, ca }, fingerprint: `sha256:${digest}` };
  }

  async #openssl(...args: string[]): Promise<void> {
    await run("openssl", args, { cwd: this.#directory });
  }
}

/** The form of `openssl ca`: YYYYMMDDHHMMSSZ. */
function openSslTime(days: number): string {
  const text = new Date(Date.now() + days * DAY_MS).toISOString();
  return `${text.slice(0, 19).replace(/[-:T]/g, "")}Z`;
}

const CONFIG = `
[ca]
default_ca = test
[test]
certificate = ca.pem
private_key = ca.key
database = index.txt
new_certs_dir = .
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
[any]
commonName = supplied
`;
