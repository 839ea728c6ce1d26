import { ServerInterceptingCall, ServerListenerBuilder } from "@grpc/grpc-js";
import type { Metadata, ServerInterceptor } from "@grpc/grpc-js";
import { FleeceError } from "../shared/errors.js";
import { type Identify, requireClient } from "./caller.js";
import { failureOf } from "./failure.js";
import { toStatus } from "./status.js";

const OF_API = "/fleece.v1.";
const OF_HEALTH = "/grpc.health.v1.Health/";

/** No call of ours takes any; some comes with every client library. */
const MOST_METADATA_BYTES = 16 * 1024;

/**
 * What every call passes before its request is read. Calls of the API need more than this: see `ApiServer`. Of the others,
 * health is for everybody who could connect, and reflection for every client that is known.
 */
export function admission(identify: Identify): ServerInterceptor {
  return ({ path }, call) =>
    new ServerInterceptingCall(call, {
      start: (next) => {
        const listener = new ServerListenerBuilder().withOnReceiveMetadata((metadata, go) => {
          try {
            checkMetadata(metadata);
            if (!path.startsWith(OF_API) && !path.startsWith(OF_HEALTH)) requireClient(identify(call));
          } catch (error) {
            call.sendStatus(toStatus(failureOf(error)));
            return;
          }
          go(metadata);
        });
        next(listener.build());
      },
    });
}

function checkMetadata(metadata: Metadata): void {
  const bytes = Object.entries(metadata.toHttp2Headers())
    .flatMap(([name, values]) => [values].flat().map((value) => name.length + String(value).length))
    .reduce((sum, length) => sum + length, 0);
  if (bytes <= MOST_METADATA_BYTES) return;
  throw new FleeceError("TOO_LARGE", `Expected at most 16 KiB of metadata, got ${bytes} bytes`);
}
