import type { BlockExport as ServiceExport } from "../services/block-exports.js";
import { listExports, startExports, stopExports } from "../services/block-exports.js";
import type { ServiceContext } from "../services/context.js";
import type {
  BlockExport,
  ListBlockExportsResponse,
  StartBlockExportsResponse,
  StopBlockExportsResponse,
} from "./messages.js";
import { nbdUri } from "./nbd-uri.js";

export interface StartBlockExportsRequest {
  readonly domain: string;
  readonly snapshot: string;
  /** A checkpoint: what changed since it is offered too. */
  readonly since?: string | undefined;
  /** Targets; empty: all disks of the snapshot. */
  readonly disks: readonly string[];
}

export async function startBlockExportsHandler(
  context: ServiceContext,
  { domain, snapshot, since, disks }: StartBlockExportsRequest,
  signal?: AbortSignal,
): Promise<StartBlockExportsResponse> {
  const exports = await startExports(context, {
    domain,
    snapshot,
    ...(since === undefined ? {} : { since }),
    ...(disks.length === 0 ? {} : { disks }),
    ...(signal === undefined ? {} : { signal }),
  });
  return { exports: exports.map(blockExportMessage) };
}

export async function listBlockExportsHandler(
  context: ServiceContext,
  { domain }: { readonly domain?: string | undefined },
): Promise<ListBlockExportsResponse> {
  return { exports: (await listExports(context, domain)).map(blockExportMessage) };
}

/** Answers with the exports as they were; none when there was none. */
export async function stopBlockExportsHandler(
  context: ServiceContext,
  { domain, snapshot }: { readonly domain: string; readonly snapshot: string },
): Promise<StopBlockExportsResponse> {
  return { exports: (await stopExports(context, domain, snapshot)).map(blockExportMessage) };
}

export function blockExportMessage(open: ServiceExport): BlockExport {
  const {
    domain,
    snapshot,
    target,
    exportName,
    socketPath,
    sizeBytes,
    since,
    changesContext,
    staged,
    broken,
  } = open;
  return {
    domain,
    snapshot,
    target,
    exportName,
    uri: nbdUri(exportName, socketPath),
    sizeBytes,
    since,
    changesContext,
    staged: staged ?? false,
    broken,
  };
}
