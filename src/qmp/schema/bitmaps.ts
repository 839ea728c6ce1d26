/** A bitmap by its node and name. */
export interface BitmapRef {
  node: string;
  name: string;
}

export interface BitmapAdd extends BitmapRef {
  /** Bytes, a power of two from 512 up; the default is the cluster size, or 64 KiB. */
  granularity?: number;
  /** Stored in the qcow2 image when that closes. */
  persistent?: boolean;
  disabled?: boolean;
}

export interface BitmapMerge {
  node: string;
  target: string;
  /** A plain name is a bitmap of `node`. */
  bitmaps: (string | BitmapRef)[];
}

/** A bitmap as `query-named-block-nodes` shows it. */
export interface BitmapInfo {
  /** Absent for those that filters and jobs keep for themselves. */
  name?: string;
  /** Bytes marked dirty, in whole granules. */
  count: number;
  /** Bytes. */
  granularity: number;
  recording: boolean;
  /** In use by a job or an export: it cannot be changed. */
  busy: boolean;
  persistent: boolean;
  /** Was not closed properly: it can only be removed. */
  inconsistent?: boolean;
}
