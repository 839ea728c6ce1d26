import type { NameKind } from "../model/names.js";
import { checkName } from "../model/names.js";
import type { ServiceContext } from "../services/context.js";
import { FleeceError, isFleeceError } from "../shared/errors.js";
import { restoreBackupHandler, serveBackupHandler, verifyBackupHandler } from "./backup-reads.js";
import { copyBackupsHandler } from "./backup-copy.js";
import { bootTestHandler } from "./boot-test.js";
import { protectBackupHandler, pruneBackupsHandler } from "./backup-retention.js";
import { deleteBackupHandler, getBackupHandler, listBackupsHandler, runBackupHandler } from "./backups.js";
import {
  listBlockExportsHandler,
  startBlockExportsHandler,
  stopBlockExportsHandler,
} from "./block-exports.js";
import {
  createBlockSnapshotHandler,
  deleteBlockSnapshotHandler,
  getBlockSnapshotHandler,
  getBlockSnapshotXmlHandler,
  listBlockSnapshotsHandler,
  renewBlockSnapshotHandler,
} from "./block-snapshots.js";
import type { Api, Call, CallName, CallOptions, CallRequest, CallResult } from "./call-types.js";
import { deleteCheckpointHandler, getCheckpointHandler, listCheckpointsHandler } from "./checkpoints.js";
import { doctorHandler } from "./doctor.js";
import {
  cloneDomainSnapshotHandler,
  createDomainSnapshotHandler,
  deleteDomainSnapshotHandler,
  getDomainSnapshotHandler,
  getDomainSnapshotXmlHandler,
  getRevertCostHandler,
  listDomainSnapshotsHandler,
  revertDomainSnapshotHandler,
} from "./domain-snapshots.js";
import {
  cancelJobHandler,
  jobHistoryHandler,
  listJobsHandler,
  runJobHandler,
  statusHandler,
} from "./jobs.js";
import { getDomainHandler, getDomainXmlHandler, listDomainsHandler } from "./domains.js";

const LOOKS = { role: "viewer", mutates: false } as const;
const WORKS = { role: "operator", mutates: true } as const;
const ADMINISTERS = { role: "administrator", mutates: true } as const;
const DOMAIN_SNAPSHOT = { domain: "domain", name: "domain snapshot" } as const;

/**
 * Every call of the API. The gRPC server and the embedded mode both have their calls from here.
 * Administrators alone may lose what cannot be had again (checkpoints, backups) and write files where they say.
 */
export const CALLS: { readonly [Name in CallName]: Call<Name> } = {
  "Domains.List": { ...LOOKS, names: {}, handler: listDomainsHandler },
  "Domains.Get": { ...LOOKS, names: { domain: "domain" }, handler: getDomainHandler },
  "Domains.GetXml": { ...LOOKS, names: { domain: "domain" }, handler: getDomainXmlHandler },
  "Domains.Inspect": { ...LOOKS, names: { domain: "domain" }, handler: doctorHandler },
  "BlockSnapshots.Create": { ...WORKS, names: { domain: "domain" }, handler: createBlockSnapshotHandler },
  "BlockSnapshots.Get": {
    ...LOOKS,
    names: { domain: "domain", name: "block snapshot" },
    handler: getBlockSnapshotHandler,
  },
  "BlockSnapshots.GetXml": {
    ...LOOKS,
    names: { domain: "domain", name: "block snapshot" },
    handler: getBlockSnapshotXmlHandler,
  },
  "BlockSnapshots.List": { ...LOOKS, names: { domain: "domain" }, handler: listBlockSnapshotsHandler },
  "BlockSnapshots.Renew": {
    ...WORKS,
    names: { domain: "domain", name: "block snapshot" },
    handler: renewBlockSnapshotHandler,
  },
  "BlockSnapshots.Delete": {
    ...WORKS,
    names: { domain: "domain", name: "block snapshot" },
    handler: deleteBlockSnapshotHandler,
  },
  "BlockExports.Start": { ...WORKS, names: { domain: "domain" }, handler: startBlockExportsHandler },
  "BlockExports.Stop": {
    ...WORKS,
    names: { domain: "domain", snapshot: "block snapshot" },
    handler: stopBlockExportsHandler,
  },
  "BlockExports.List": { ...LOOKS, names: {}, handler: listBlockExportsHandler },
  "Checkpoints.List": { ...LOOKS, names: { domain: "domain" }, handler: listCheckpointsHandler },
  "Checkpoints.Get": {
    ...LOOKS,
    names: { domain: "domain", name: "checkpoint" },
    handler: getCheckpointHandler,
  },
  "Checkpoints.Delete": {
    ...ADMINISTERS,
    names: { domain: "domain", name: "checkpoint" },
    handler: deleteCheckpointHandler,
  },
  "Backups.Run": { ...WORKS, names: { domain: "domain" }, handler: runBackupHandler },
  "Backups.List": { ...LOOKS, names: {}, handler: listBackupsHandler },
  "Backups.Get": { ...LOOKS, names: { id: "backup" }, handler: getBackupHandler },
  "Backups.Verify": { ...LOOKS, names: { id: "backup" }, handler: verifyBackupHandler },
  "Backups.Restore": { ...ADMINISTERS, names: {}, handler: restoreBackupHandler },
  "Backups.Serve": {
    ...WORKS,
    administers: ["socketPath"],
    names: { id: "backup" },
    handler: serveBackupHandler,
  },
  "Backups.BootTest": { ...WORKS, names: {}, handler: bootTestHandler },
  "Backups.Delete": { ...ADMINISTERS, names: { id: "backup" }, handler: deleteBackupHandler },
  "Backups.Protect": { ...ADMINISTERS, names: { id: "backup" }, handler: protectBackupHandler },
  "Backups.Copy": { ...WORKS, names: { domain: "domain", to: "repository" }, handler: copyBackupsHandler },
  "Backups.Prune": { ...ADMINISTERS, names: {}, handler: pruneBackupsHandler },
  "DomainSnapshots.Create": {
    ...WORKS,
    administers: ["memoryPath", "directory", "overlays", "xml", "file", "settings"],
    names: { domain: "domain" },
    handler: createDomainSnapshotHandler,
  },
  "DomainSnapshots.List": { ...LOOKS, names: { domain: "domain" }, handler: listDomainSnapshotsHandler },
  "DomainSnapshots.Get": { ...LOOKS, names: DOMAIN_SNAPSHOT, handler: getDomainSnapshotHandler },
  "DomainSnapshots.GetXml": { ...LOOKS, names: DOMAIN_SNAPSHOT, handler: getDomainSnapshotXmlHandler },
  "DomainSnapshots.GetRevertCost": { ...LOOKS, names: DOMAIN_SNAPSHOT, handler: getRevertCostHandler },
  "DomainSnapshots.Revert": { ...ADMINISTERS, names: DOMAIN_SNAPSHOT, handler: revertDomainSnapshotHandler },
  "DomainSnapshots.Delete": { ...ADMINISTERS, names: DOMAIN_SNAPSHOT, handler: deleteDomainSnapshotHandler },
  "DomainSnapshots.Clone": { ...ADMINISTERS, names: DOMAIN_SNAPSHOT, handler: cloneDomainSnapshotHandler },
  "Jobs.List": { ...LOOKS, names: {}, handler: listJobsHandler },
  "Jobs.Run": { ...WORKS, names: { job: "job" }, handler: runJobHandler },
  "Jobs.Cancel": { ...WORKS, names: { job: "job" }, handler: cancelJobHandler },
  "Jobs.History": { ...LOOKS, names: {}, handler: jobHistoryHandler },
  "Jobs.Status": { ...LOOKS, names: {}, handler: statusHandler },
};

/** Fails with INVALID_NAME, naming the field, for a name that no name can be; else as the call does. */
export async function runCall<Name extends CallName>(
  context: ServiceContext,
  name: Name,
  request: CallRequest<Name>,
  options: CallOptions = {},
): Promise<CallResult<Name>> {
  const call: Call<Name> = CALLS[name];
  for (const [field, kind] of Object.entries(call.names)) {
    checkField(field, kind, (request as Readonly<Record<string, unknown>>)[field]);
  }
  return call.handler(context, request, options);
}

function checkField(field: string, kind: NameKind, value: unknown): void {
  try {
    checkName(kind, String(value));
  } catch (error) {
    if (!isFleeceError(error)) throw error;
    throw new FleeceError(error.code, error.message, { cause: error, facts: { ...error.facts, field } });
  }
}

/** The API inside this process, without an agent. */
export function embeddedApi(context: ServiceContext): Api {
  return { call: (name, request, options) => runCall(context, name, request, options) };
}
