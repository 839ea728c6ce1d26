import { loadSync } from "@grpc/proto-loader";
import type { MethodDefinition, PackageDefinition, ServiceDefinition } from "@grpc/proto-loader";
import { FleeceError } from "../shared/errors.js";
import type { CallName, ServiceName } from "./call-types.js";
import { PROTO_DIRECTORY, PROTO_FILES, SERVICE_FILES } from "./proto.js";

/** Messages as the generated types have them: config/generate.mjs has the same options. */
export function loadPackage(files: string | string[] = PROTO_FILES): PackageDefinition {
  return loadSync(files, {
    longs: Number,
    enums: String,
    defaults: true,
    includeDirs: [PROTO_DIRECTORY],
  });
}

const services = new Map<ServiceName, PackageDefinition>();

/** As `loadPackage`, of the one service that a call is to, read once: all of them take a client longer than the call. */
export function loadServiceOf(name: CallName): PackageDefinition {
  const [service] = name.split(".") as [ServiceName];
  const known = services.get(service);
  if (known !== undefined) return known;
  const loaded = loadPackage(SERVICE_FILES[service]);
  services.set(service, loaded);
  return loaded;
}

/** Requests and responses go over the wire as objects whose types call-types.ts tells. */
export type WireMethod = MethodDefinition<object, object, object, object>;

export function methodOf(definitions: PackageDefinition, name: CallName): WireMethod {
  const [service, method] = name.split(".");
  const definition = definitions[`fleece.v1.${service ?? ""}`] as ServiceDefinition | undefined;
  const found = definition?.[method ?? ""] as WireMethod | undefined;
  if (found !== undefined) return found;
  throw new FleeceError("INTERNAL", `The .proto files have no method ${name}`);
}
