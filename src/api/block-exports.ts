import type { BlockExport as ServiceExport, ExportRequest } from "../services/block-exports.js";
import { listExports, startExports, stopExports } from "../services/block-exports.js";
import type { ServiceContext } from "../services/context.js";
import type { FrontAddress } from "../model/front-offer.js";
import { formatFrontAddress, frontExportName, parseFrontAddress } from "../model/front-offer.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type {
  BlockExport,
  ListBlockExportsResponse,
  StartBlockExportsResponse,
  StopBlockExportsResponse,
} from "./messages.js";
import { FleeceError } from "../shared/errors.js";
import { nbdTcpUri, nbdUri } from "./nbd-uri.js";
import type { ExportAddressDocument, ExportRequestDocument } from "./xml/block-export-xml.js";
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

type WantedExports = Pick<ExportRequest, "snapshot" | "since" | "disks" | "front">;

function wantedExports({
  snapshot,
  since,
  disks,
  xml,
  address,
  clients,
}: CallRequest<"BlockExports.Start">): readonly WantedExports[] {
  if (xml === undefined) {
    if (snapshot === "") {
      throw new FleeceError("INVALID_ARGUMENT", "Expected the name of a block snapshot, or XML, got neither");
    }
    const rest = { ...(since === undefined ? {} : { since }), ...(disks.length === 0 ? {} : { disks }) };
    const front = wantedFront(address === undefined ? undefined : parseFrontAddress(address), clients);
    return [{ snapshot, ...rest, ...front }];
  }
  if (snapshot !== "" || since !== undefined || disks.length > 0 || address !== undefined) {
    throw new FleeceError(
      "INVALID_ARGUMENT",
      "Expected either XML or a snapshot, a checkpoint, disks and an address, got both: the XML says what to offer, and where",
    );
  }
  return exportsOfDocument(parseExportRequestXml(xml), clients);
}

function exportsOfDocument(
  { address, disks }: ExportRequestDocument,
  clients: readonly string[],
): readonly WantedExports[] {
  const front = wantedFront(address && frontAddressOf(address), clients);
  const groups = new Map<string, WantedExports & { readonly disks: readonly string[] }>();
  for (const { name, snapshot, checkpoint } of disks) {
    const key = JSON.stringify([snapshot, checkpoint]);
    const since = checkpoint === undefined ? {} : { since: checkpoint };
    groups.set(key, { snapshot, ...since, disks: [...(groups.get(key)?.disks ?? []), name], ...front });
  }
  return [...groups.values()];
}

function frontAddressOf(address: ExportAddressDocument): FrontAddress {
  return address.type === "unix" ? { socketPath: address.path } : { host: address.host, port: address.port };
}

function wantedFront(
  address: FrontAddress | undefined,
  clients: readonly string[],
): Pick<ExportRequest, "front"> {
  if (address !== undefined) return { front: { address, clients } };
  if (clients.length === 0) return {};
  throw new FleeceError(
    "INVALID_ARGUMENT",
    "Expected an address at which the clients may read, got none: on the private socket nobody shows a certificate",
  );
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

/** As readers meet it: where, and by which name. */
export function publicExport({ domain, exportName, socketPath, front }: ServiceExport): {
  readonly exportName: string;
  readonly uri: string;
  readonly address: ExportAddressDocument;
} {
  if (front === undefined) {
    return {
      exportName,
      uri: nbdUri(exportName, socketPath),
      address: { type: "unix", path: socketPath },
    };
  }
  const name = frontExportName(domain, exportName);
  const { address, clients } = front;
  return "socketPath" in address
    ? {
        exportName: name,
        uri: nbdUri(name, address.socketPath),
        address: { type: "unix", path: address.socketPath },
      }
    : {
        exportName: name,
        uri: nbdTcpUri(name, address, { tls: clients !== "any" }),
        address: { type: "ip", ...address },
      };
}

export function blockExportMessage(open: ServiceExport): BlockExport {
  const { domain, snapshot, target, sizeBytes, since, changesContext, staged, broken, front } = open;
  const { exportName, uri } = publicExport(open);
  return {
    domain,
    snapshot,
    target,
    exportName,
    uri,
    sizeBytes,
    since,
    changesContext,
    staged: staged ?? false,
    broken,
    address: front && formatFrontAddress(front.address),
    clients: front === undefined || front.clients === "any" ? [] : front.clients,
  };
}
