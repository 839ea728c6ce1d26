import { constants, open } from "node:fs/promises";
import { createSecureContext } from "node:tls";
import { errorMessage, fileError, FleeceError } from "../shared/errors.js";

export interface TlsPaths {
  readonly certificate: string;
  readonly key: string;
  readonly ca: string;
}

/** In PEM: an own certificate with its chain and key, and the authority that signs those of the other side. */
export interface TlsFiles {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly ca: Buffer;
}

const OTHERS = 0o077;
const LARGEST_BYTES = 1024 * 1024;

/**
 * Reads and checks them. Fails with PATH_NOT_FOUND or PERMISSION_DENIED, the latter also if anybody but its owner may read or
 * write the key, and with TLS_INVALID if they do not fit together.
 */
export async function readTlsFiles({ certificate, key, ca }: TlsPaths): Promise<TlsFiles> {
  const files = {
    cert: await read(certificate, "the certificate"),
    key: await read(key, "the key", OTHERS),
    ca: await read(ca, "the certificates of the authority"),
  };
  try {
    createSecureContext(files);
  } catch (error) {
    // OpenSSL's words name no content of the key.
    const message = `Expected a certificate, its key and an authority in PEM: ${errorMessage(error)}`;
    throw new FleeceError("TLS_INVALID", `${message} (${certificate}, ${key}, ${ca})`, { cause: error });
  }
  return files;
}

async function read(path: string, what: string, forbiddenMode = 0): Promise<Buffer> {
  try {
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const { mode, size } = await file.stat();
    if ((mode & forbiddenMode) !== 0) {
      throw new FleeceError(
        "PERMISSION_DENIED",
        `Expected ${what} ${path} to be its owner's alone (mode 0600), got mode ${(mode & 0o777).toString(8).padStart(4, "0")}`,
        { facts: { path } },
      );
    }
    if (size > LARGEST_BYTES) throw new FleeceError("TLS_INVALID", `${path} is too large for ${what}`);
    return await file.readFile();
  } catch (error) {
    throw fileError(error, `read ${what}`, path);
  }
}
