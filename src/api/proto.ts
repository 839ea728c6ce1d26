import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";

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
].map((name) => `fleece/v1/${name}.proto`);

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
