import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";
import type { ServiceName } from "./call-types.js";

/** From dist/api and from src/api alike. */
export const PROTO_DIRECTORY = fileURLToPath(new URL("../../proto/", import.meta.url));
export const PROTO_FILES = [
  "disk",
  "domain",
  "checkpoint",
  "backup",
  "block_snapshot",
  "domain_snapshot",
  "doctor",
  "xml",
  "jobs",
].map(protoFile);

/** Where each service is; the file names all that it needs. */
export const SERVICE_FILES: Readonly<Record<ServiceName, string>> = {
  Backups: protoFile("backup"),
  BlockExports: protoFile("block_snapshot"),
  BlockSnapshots: protoFile("block_snapshot"),
  Checkpoints: protoFile("checkpoint"),
  DomainSnapshots: protoFile("domain_snapshot"),
  Domains: protoFile("domain"),
  Jobs: protoFile("jobs"),
};

function protoFile(name: string): string {
  return `fleece/v1/${name}.proto`;
}

let loaded: protobuf.Root | undefined;

/** The schema of the API, read once. Fails with a plain error if the installation has lost its .proto files. */
export function protoRoot(): protobuf.Root {
  if (loaded !== undefined) return loaded;
  const root = new protobuf.Root();
  root.resolvePath = (_origin, target) =>
    target.startsWith("google/protobuf/") ? target : `${PROTO_DIRECTORY}${target}`;
  root.loadSync(PROTO_FILES);
  root.resolveAll();
  loaded = root;
  return root;
}
