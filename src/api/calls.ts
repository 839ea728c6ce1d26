import type { ServiceContext } from "../services/context.js";
import { FleeceError } from "../shared/errors.js";
import { restoreBackupHandler, serveBackupHandler, verifyBackupHandler } from "./backup-reads.js";
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
  listBlockSnapshotsHandler,
  renewBlockSnapshotHandler,
} from "./block-snapshots.js";
import type { Api, Call, CallName, CallOptions, CallRequest, CallResult } from "./call-types.js";
import { deleteCheckpointHandler, getCheckpointHandler, listCheckpointsHandler } from "./checkpoints.js";
import { doctorHandler } from "./doctor.js";
import { getDomainHandler, listDomainsHandler } from "./domains.js";

const LOOKS = { role: "viewer", mutates: false } as const;
const WORKS = { role: "operator", mutates: true } as const;
const ADMINISTERS = { role: "administrator", mutates: true } as const;

/**
 * Every call of the API. The gRPC server and the embedded mode both have their calls from here.
 * Administrators alone may lose what cannot be had again (checkpoints, backups) and write files where they say.
 */
export const CALLS: { readonly [Name in CallName]: Call<Name> } = {
  "Domains.List": { ...LOOKS, required: [], handler: listDomainsHandler },
  "Domains.Get": { ...LOOKS, required: ["domain"], handler: getDomainHandler },
  "Domains.Inspect": { ...LOOKS, required: ["domain"], handler: doctorHandler },
  "BlockSnapshots.Create": { ...WORKS, required: ["domain"], handler: createBlockSnapshotHandler },
  "BlockSnapshots.Get": { ...LOOKS, required: ["domain", "name"], handler: getBlockSnapshotHandler },
  "BlockSnapshots.List": { ...LOOKS, required: ["domain"], handler: listBlockSnapshotsHandler },
  "BlockSnapshots.Renew": { ...WORKS, required: ["domain", "name"], handler: renewBlockSnapshotHandler },
  "BlockSnapshots.Delete": { ...WORKS, required: ["domain", "name"], handler: deleteBlockSnapshotHandler },
  "BlockExports.Start": { ...WORKS, required: ["domain", "snapshot"], handler: startBlockExportsHandler },
  "BlockExports.Stop": { ...WORKS, required: ["domain", "snapshot"], handler: stopBlockExportsHandler },
  "BlockExports.List": { ...LOOKS, required: [], handler: listBlockExportsHandler },
  "Checkpoints.List": { ...LOOKS, required: ["domain"], handler: listCheckpointsHandler },
  "Checkpoints.Get": { ...LOOKS, required: ["domain", "name"], handler: getCheckpointHandler },
  "Checkpoints.Delete": { ...ADMINISTERS, required: ["domain", "name"], handler: deleteCheckpointHandler },
  "Backups.Run": { ...WORKS, required: ["domain"], handler: runBackupHandler },
  "Backups.List": { ...LOOKS, required: [], handler: listBackupsHandler },
  "Backups.Get": { ...LOOKS, required: ["id"], handler: getBackupHandler },
  "Backups.Verify": { ...LOOKS, required: ["id"], handler: verifyBackupHandler },
  "Backups.Restore": { ...ADMINISTERS, required: ["id", "directory"], handler: restoreBackupHandler },
  "Backups.Serve": {
    ...WORKS,
    administers: ["socketPath"],
    required: ["id"],
    handler: serveBackupHandler,
  },
  "Backups.Delete": { ...ADMINISTERS, required: ["id"], handler: deleteBackupHandler },
};

/** Fails with INVALID_ARGUMENT if a required field is empty, else as the call does. */
export async function runCall<Name extends CallName>(
  context: ServiceContext,
  name: Name,
  request: CallRequest<Name>,
  options: CallOptions = {},
): Promise<CallResult<Name>> {
  const call: Call<Name> = CALLS[name];
  for (const field of call.required) {
    if (request[field] !== "") continue;
    throw new FleeceError("INVALID_ARGUMENT", `Expected a value for ${field}, got an empty one`, {
      facts: { field },
    });
  }
  return call.handler(context, request, options);
}

/** The API inside this process, without an agent. */
export function embeddedApi(context: ServiceContext): Api {
  return { call: (name, request, options) => runCall(context, name, request, options) };
}
