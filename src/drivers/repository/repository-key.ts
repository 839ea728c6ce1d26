import { createCipheriv, hkdfSync, randomBytes } from "node:crypto";
import { FleeceError } from "../../shared/errors.js";
import { Secret } from "../../shared/secret.js";

/** Of each file's own key, so that no two files are encrypted with the same one. */
export const SALT_BYTES = 32;
const KEY_BYTES = 32;
const ID_BYTES = 16;
/** AES counts blocks of so many bytes. */
const AES_BLOCK_BYTES = 16;

/** What files a key is for: none of one kind can be taken for one of another. */
export type FilePurpose = "digests" | "machine file";

/**
 * The key of a repository. It is the passphrase of the images, so that QEMU's own tools open them too; other files have keys
 * that are derived from it (HKDF-SHA-256, RFC 5869), which tell nothing of it.
 */
export class RepositoryKey {
  /** Tells which key something needs; says nothing about the key itself. */
  readonly id: string;
  readonly passphrase: Secret;

  /** As random as 16 bytes or more: derivation is quick, so that one which can be guessed would be. */
  constructor(text: string) {
    this.passphrase = new Secret(text);
    this.id = this.#derive("", "id", ID_BYTES).toString("hex");
  }

  /** The key of one file, whose salt is stored in it. */
  fileKey(salt: Uint8Array, purpose: FilePurpose): Buffer {
    return this.#derive(salt, purpose, KEY_BYTES);
  }

  #derive(salt: Uint8Array | string, purpose: string, bytes: number): Buffer {
    return Buffer.from(
      hkdfSync("sha256", this.passphrase.reveal(), salt, `fleece repository ${purpose}`, bytes),
    );
  }
}

export function newSalt(): Buffer {
  return randomBytes(SALT_BYTES);
}

/**
 * AES-256 in counter mode, at any place of a file: the counter is that of the place. Its own inverse. Never for other content
 * at the same place of the same file.
 */
export function atPlace(fileKey: Uint8Array, offset: number, bytes: Uint8Array): Buffer {
  const counter = Buffer.alloc(AES_BLOCK_BYTES);
  counter.writeBigUInt64BE(BigInt(offset / AES_BLOCK_BYTES), AES_BLOCK_BYTES - 8);
  return createCipheriv("aes-256-ctr", fileKey, counter).update(bytes);
}

/** Gives the key with this id; undefined for what is not encrypted. Fails with KEY_WRONG. */
export type Keys = (keyId: string | undefined) => RepositoryKey | undefined;

/** `key` is that of the repository, if it was needed. */
export function keysOf(repository: string, key: RepositoryKey | undefined): Keys {
  return (keyId) => {
    if (keyId === undefined) return undefined;
    if (key?.id === keyId) return key;
    throw new FleeceError(
      "KEY_WRONG",
      `A backup in repository ${repository} is encrypted with the key ${keyId}, but the repository's key is now ${key?.id ?? "none"}: give the key that it was taken with, or take a full backup with the new one`,
      { facts: { repository, keyId } },
    );
  };
}
