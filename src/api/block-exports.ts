import type { BlockExport as ServiceExport, ExportRequest } from "../services/block-exports.js";
import { listExports, startExports, stopExports } from "../services/block-exports.js";
import type { ServiceContext } from "../services/context.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type {
  BlockExport,
  ListBlockExportsResponse,
  StartBlockExportsResponse,
  StopBlockExportsResponse,
} from "./messages.js";
import { FleeceError } from "../shared/errors.js";
import { nbdUri } from "./nbd-uri.js";
import type { ExportRequestDocument } from "./xml/block-export-xml.js";
import { parseExportRequestXml } from "./xml/block-export-xml.js";

/**
 * XML may name several snapshots and checkpoints. They are taken one after the other: after an error, what was started before
 * it stays, and the same request may be repeated.
 */
export async function startBlockExportsHandler(
  context: ServiceContext,
  request: CallRequest<"BlockExports.Start">,
  { signal }: CallOptions,
): Promise<StartBlockExportsResponse> {
  const { domain } = request;
  const exports: BlockExport[] = [];
  for (const wanted of wantedExports(request)) {
    const options = { domain, ...wanted, ...(signal === undefined ? {} : { signal }) };
    exports.push(...(await startExports(context, options)).map(blockExportMessage));
  }
  return { exports };
}

type WantedExports = Pick<ExportRequest, "snapshot" | "since" | "disks">;

function wantedExports({
  snapshot,
  since,
  disks,
  xml,
}: CallRequest<"BlockExports.Start">): readonly WantedExports[] {
  if (xml === undefined) {
    if (snapshot === "") {
      throw new FleeceError("INVALID_ARGUMENT", "Expected the name of a block snapshot, or XML, got neither");
    }
    const rest = { ...(since === undefined ? {} : { since }), ...(disks.length === 0 ? {} : { disks }) };
    return [{ snapshot, ...rest }];
  }
  if (snapshot !== "" || since !== undefined || disks.length > 0) {
    throw new FleeceError(
      "INVALID_ARGUMENT",
      "Expected either XML or a snapshot, a checkpoint and disks, got both: the XML says what to offer",
    );
  }
  return exportsOfDocument(parseExportRequestXml(xml));
}

function exportsOfDocument({ address, disks }: ExportRequestDocument): readonly WantedExports[] {
  if (address !== undefined) {
    const wanted = address.type === "ip" ? `${address.host} port ${address.port}` : address.path;
    throw new FleeceError(
      "UNSUPPORTED",
      `Cannot offer exports at ${wanted}: addresses other than the domain's private socket need the front, which is not there; leave out <address>, and the answer tells where the socket is`,
    );
  }
  const groups = new Map<string, WantedExports & { readonly disks: readonly string[] }>();
  for (const { name, snapshot, checkpoint } of disks) {
    const key = JSON.stringify([snapshot, checkpoint]);
    const since = checkpoint === undefined ? {} : { since: checkpoint };
    groups.set(key, { snapshot, ...since, disks: [...(groups.get(key)?.disks ?? []), name] });
  }
  return [...groups.values()];
}

export async function listBlockExportsHandler(
  context: ServiceContext,
  { domain }: CallRequest<"BlockExports.List">,
): Promise<ListBlockExportsResponse> {
  return { exports: (await listExports(context, domain)).map(blockExportMessage) };
}

/** Answers with the exports as they were; none when there was none. */
export async function stopBlockExportsHandler(
  context: ServiceContext,
  { domain, snapshot }: CallRequest<"BlockExports.Stop">,
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
