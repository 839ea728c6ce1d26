import { createCipheriv, createDecipheriv, type CipherGCM, type DecipherGCM } from "node:crypto";
import type { FileCipher } from "../../ports/repository.js";
import { newSalt, type RepositoryKey, SALT_BYTES } from "./repository-key.js";

/*
 * A small file in an encrypted repository: salt (32 bytes), content, tag (16 bytes). The content is encrypted with AES-256-GCM,
 * by a key of the file's own that is derived from the repository's and the salt; so one nonce does for all. The file's name
 * is authenticated with it.
 */
const ALGORITHM = "aes-256-gcm";
const NONCE = Buffer.alloc(12);
const TAG_BYTES = 16;

/** What encryption adds to a file. */
export const ENCRYPTION_BYTES = SALT_BYTES + TAG_BYTES;

export class FileEncryption implements FileCipher {
  readonly #cipher: CipherGCM;
  /** To be written before all else. */
  #head: Buffer;

  constructor(key: RepositoryKey, name: string) {
    this.#head = newSalt();
    this.#cipher = createCipheriv(ALGORITHM, key.fileKey(this.#head, "machine file"), NONCE);
    this.#cipher.setAAD(Buffer.from(name));
  }

  update(bytes: Uint8Array): Buffer {
    return Buffer.concat([this.#takeHead(), this.#cipher.update(bytes)]);
  }

  end(): Buffer {
    return Buffer.concat([this.#takeHead(), this.#cipher.final(), this.#cipher.getAuthTag()]);
  }

  #takeHead(): Buffer {
    const head = this.#head;
    this.#head = Buffer.alloc(0);
    return head;
  }
}

export class FileDecryption implements FileCipher {
  readonly #key: RepositoryKey;
  readonly #name: string;
  #decipher: DecipherGCM | undefined;
  /** Not decrypted yet: it may be the tag. */
  #held: Buffer = Buffer.alloc(0);

  constructor(key: RepositoryKey, name: string) {
    this.#key = key;
    this.#name = name;
  }

  update(bytes: Uint8Array): Buffer {
    this.#held = Buffer.concat([this.#held, bytes]);
    if (this.#decipher === undefined) {
      if (this.#held.length < SALT_BYTES) return Buffer.alloc(0);
      const fileKey = this.#key.fileKey(this.#held.subarray(0, SALT_BYTES), "machine file");
      this.#decipher = createDecipheriv(ALGORITHM, fileKey, NONCE);
      this.#decipher.setAAD(Buffer.from(this.#name));
      this.#held = this.#held.subarray(SALT_BYTES);
    }
    const ready = Math.max(0, this.#held.length - TAG_BYTES);
    const content = this.#decipher.update(this.#held.subarray(0, ready));
    this.#held = this.#held.subarray(ready);
    return content;
  }

  end(): Buffer | undefined {
    if (this.#decipher === undefined || this.#held.length < TAG_BYTES) return undefined;
    try {
      this.#decipher.setAuthTag(this.#held);
      return this.#decipher.final();
    } catch {
      return undefined;
    }
  }
}

/** From one way of storing a file to another; undefined: as it is. */
export class FileRecoding implements FileCipher {
  readonly #from: FileCipher | undefined;
  readonly #to: FileCipher | undefined;
  #plainBytes = 0;

  constructor(from: FileCipher | undefined, to: FileCipher | undefined) {
    this.#from = from;
    this.#to = to;
  }

  /** How long the content is, as far as it has come. */
  get plainBytes(): number {
    return this.#plainBytes;
  }

  update(bytes: Uint8Array): Uint8Array {
    const plain = this.#from === undefined ? bytes : this.#from.update(bytes);
    this.#plainBytes += plain.length;
    return this.#to === undefined ? plain : this.#to.update(plain);
  }

  end(): Uint8Array | undefined {
    const plain = this.#from === undefined ? new Uint8Array(0) : this.#from.end();
    if (plain === undefined) return undefined;
    this.#plainBytes += plain.length;
    if (this.#to === undefined) return plain;
    const before = this.#to.update(plain);
    const last = this.#to.end();
    return last === undefined ? undefined : Buffer.concat([before, last]);
  }
}
