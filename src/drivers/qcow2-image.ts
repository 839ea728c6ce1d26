import { BLOCK_SIZE } from "../model/extents.js";
import { FleeceError } from "../shared/errors.js";

/**
 * An empty qcow2 image, as `qemu-img create` makes one (QEMU's interop/qcow2.txt, version 3). Four things at the beginning of
 * a file of zeroes, and no process has to be started for them:
 *
 *     cluster 0    header, name and format of the backing file
 *     cluster 1    refcount table: one entry
 *     cluster 2    refcount block: one reference to each cluster here
 *     cluster 3…   level 1 table: all zeroes, nothing is allocated
 *     after that   LUKS header, if the image is encrypted
 */
export interface EmptyImage {
  readonly pieces: readonly { readonly offset: number; readonly bytes: Uint8Array }[];
  /** All else in it is zero. */
  readonly fileBytes: number;
}

const CLUSTER_BITS = Math.log2(BLOCK_SIZE);
/** What an entry of the level 1 table stands for: a cluster full of 8-byte entries of level 2. */
const BYTES_PER_ENTRY = (BLOCK_SIZE / 8) * BLOCK_SIZE;
/** QEMU's QCOW_MAX_L1_SIZE. One refcount block counts four times as many clusters as the largest table has. */
const MAX_TABLE_BYTES = 32 * 2 ** 20;
const MAX_NAME_BYTES = 1023;
const SECTOR_BYTES = 512;

const HEADER_BYTES = 112;
const BACKING_FORMAT = 0xe2792aca;
/** Where the LUKS header is: its offset and length. */
const ENCRYPTION_HEADER = 0x0537be77;
const LUKS_METHOD = 2;
/** Entries of 2 to the power of 4 bits. */
const REFCOUNT_ORDER = 4;
/** Bit 3 of the incompatible features: another type of compression than zlib. */
const INCOMPATIBLE_COMPRESSION = 8n;
const ZSTD = 1;
const REFCOUNT_TABLE = BLOCK_SIZE;
const REFCOUNT_BLOCK = 2 * BLOCK_SIZE;
const TABLE = 3 * BLOCK_SIZE;

export interface EmptyImageOptions {
  /** The name of an image, written as it is. */
  readonly backing?: string | undefined;
  /** QEMU's name for its format. Default: `qcow2`. */
  readonly backingFormat?: string | undefined;
  /** Clusters that will be written compressed are so by zstd. */
  readonly compressed?: boolean | undefined;
  /** The LUKS header of an image that is encrypted. */
  readonly luks?: Uint8Array | undefined;
}

/** Fails with UNSUPPORTED if the size is more than the format holds. */
export function emptyQcow2(
  sizeBytes: number,
  { backing = "", backingFormat = "qcow2", compressed = false, luks }: EmptyImageOptions = {},
): EmptyImage {
  const entries = Math.ceil(sizeBytes / BYTES_PER_ENTRY);
  const name = Buffer.from(backing);
  if (entries * 8 > MAX_TABLE_BYTES || name.length > MAX_NAME_BYTES) {
    throw new FleeceError(
      "UNSUPPORTED",
      `Expected a qcow2 image of at most 2 PiB whose backing file has a name of at most ${MAX_NAME_BYTES} bytes, got ${sizeBytes} bytes and a name of ${name.length}`,
    );
  }
  const tableClusters = Math.ceil((entries * 8) / BLOCK_SIZE);
  const header = Buffer.alloc(HEADER_BYTES);
  header.write("QFI\xfb", 0, "latin1");
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(CLUSTER_BITS, 20);
  header.writeBigUInt64BE(BigInt(Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES), 24);
  header.writeUInt32BE(entries, 36);
  header.writeBigUInt64BE(BigInt(TABLE), 40);
  header.writeBigUInt64BE(BigInt(REFCOUNT_TABLE), 48);
  header.writeUInt32BE(1, 56);
  if (compressed) {
    header.writeBigUInt64BE(INCOMPATIBLE_COMPRESSION, 72);
    header.writeUInt8(ZSTD, 104);
  }
  const luksOffset = TABLE + tableClusters * BLOCK_SIZE;
  if (luks !== undefined) header.writeUInt32BE(LUKS_METHOD, 32);
  header.writeUInt32BE(REFCOUNT_ORDER, 96);
  header.writeUInt32BE(HEADER_BYTES, 100);
  const extensions = Buffer.concat([
    ...(name.length === 0 ? [] : [extension(BACKING_FORMAT, Buffer.from(backingFormat))]),
    ...(luks === undefined ? [] : [extension(ENCRYPTION_HEADER, place(luksOffset, luks.length))]),
    extension(0, Buffer.alloc(0)),
  ]);
  if (name.length > 0) {
    header.writeBigUInt64BE(BigInt(HEADER_BYTES + extensions.length), 8);
    header.writeUInt32BE(name.length, 16);
  }
  const refcountTable = Buffer.alloc(8);
  refcountTable.writeBigUInt64BE(BigInt(REFCOUNT_BLOCK));
  const clusters = TABLE / BLOCK_SIZE + tableClusters + Math.ceil((luks?.length ?? 0) / BLOCK_SIZE);
  const refcounts = Buffer.alloc(clusters * 2);
  for (let cluster = 0; cluster < clusters; cluster++) refcounts.writeUInt16BE(1, cluster * 2);
  return {
    pieces: [
      { offset: 0, bytes: Buffer.concat([header, extensions, name]) },
      { offset: REFCOUNT_TABLE, bytes: refcountTable },
      { offset: REFCOUNT_BLOCK, bytes: refcounts },
      ...(luks === undefined ? [] : [{ offset: luksOffset, bytes: luks }]),
    ],
    fileBytes: clusters * BLOCK_SIZE,
  };
}

/** Padded to 8 bytes. */
function extension(type: number, data: Buffer): Buffer {
  const bytes = Buffer.alloc(8 + Math.ceil(data.length / 8) * 8);
  bytes.writeUInt32BE(type, 0);
  bytes.writeUInt32BE(data.length, 4);
  data.copy(bytes, 8);
  return bytes;
}

/** Offset and length of a piece of the image. */
function place(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(16);
  bytes.writeBigUInt64BE(BigInt(offset), 0);
  bytes.writeBigUInt64BE(BigInt(length), 8);
  return bytes;
}

/** Where the LUKS header of an image is, by the image's first cluster; undefined if that does not say it. */
export function luksPlace(
  firstCluster: Buffer,
): { readonly offset: number; readonly length: number } | undefined {
  if (firstCluster.length < HEADER_BYTES || firstCluster.toString("latin1", 0, 4) !== "QFI\xfb")
    return undefined;
  for (let at = firstCluster.readUInt32BE(100); at + 24 <= firstCluster.length;) {
    const type = firstCluster.readUInt32BE(at);
    const length = firstCluster.readUInt32BE(at + 4);
    if (type === ENCRYPTION_HEADER && length === 16) {
      return {
        offset: Number(firstCluster.readBigUInt64BE(at + 8)),
        length: Number(firstCluster.readBigUInt64BE(at + 16)),
      };
    }
    if (type === 0) return undefined;
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return undefined;
}
