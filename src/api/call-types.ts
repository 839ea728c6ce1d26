import type { MethodDefinition } from "@grpc/proto-loader";
import type { Role } from "../model/access.js";
import type { NameKind } from "../model/names.js";
import type { ServiceContext } from "../services/context.js";
import type { Promised } from "../services/request-log.js";
import type { BackupsDefinition } from "./generated/fleece/v1/Backups.js";
import type { BlockExportsDefinition } from "./generated/fleece/v1/BlockExports.js";
import type { BlockSnapshotsDefinition } from "./generated/fleece/v1/BlockSnapshots.js";
import type { CheckpointsDefinition } from "./generated/fleece/v1/Checkpoints.js";
import type { DomainSnapshotsDefinition } from "./generated/fleece/v1/DomainSnapshots.js";
import type { DomainsDefinition } from "./generated/fleece/v1/Domains.js";
import type { JobsDefinition } from "./generated/fleece/v1/Jobs.js";
import type { Message, Progress, ServedBackup } from "./messages.js";

/** The services of `fleece.v1`, as they are generated. */
interface Services {
  readonly Domains: DomainsDefinition;
  readonly BlockSnapshots: BlockSnapshotsDefinition;
  readonly BlockExports: BlockExportsDefinition;
  readonly Checkpoints: CheckpointsDefinition;
  readonly Backups: BackupsDefinition;
  readonly DomainSnapshots: DomainSnapshotsDefinition;
  readonly Jobs: JobsDefinition;
}

export type ServiceName = keyof Services;

/** Generated definitions have an index signature besides their methods. */
type MethodName<Service> = keyof { [Name in keyof Service as string extends Name ? never : Name]: true };

/** `Backups.Run` and all the others. */
export type CallName = {
  [Service in keyof Services]: `${Service}.${MethodName<Services[Service]> & string}`;
}[keyof Services];

type Definition<Name extends CallName> =
  Name extends `${infer Service extends keyof Services}.${infer Method}` ? Services[Service][Method] : never;

export type CallRequest<Name extends CallName> =
  Definition<Name> extends MethodDefinition<infer _In, infer _Out, infer Request, infer _Response>
    ? Message<Request>
    : never;

/** The one message of the answer, or of a stream. */
export type CallResponse<Name extends CallName> =
  Definition<Name> extends MethodDefinition<infer _In, infer _Out, infer _Request, infer Response>
    ? Message<Response>
    : never;

/** What the call resolves with: of a stream its result; nothing for a call that lasts until it is cancelled. */
export type CallResult<Name extends CallName> =
  CallResponse<Name> extends { readonly result?: infer Result }
    ? NonNullable<Result>
    : CallResponse<Name> extends { readonly served?: unknown }
      ? undefined
      : CallResponse<Name>;

export interface CallOptions {
  /** Cancels the call; what it has made is undone first. */
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: Progress) => void) | undefined;
  /** Of `Backups.Serve`: clients can connect from now on. */
  readonly onServed?: ((served: ServedBackup) => void) | undefined;
  /** Of a request with an id: kept with what the call makes, and tells a repeat after a kill what was made by it. */
  readonly requestKey?: string | undefined;
  /** Of the same: awaited before an effect that does not tell by whom it was. See `WorkOptions.promise`. */
  readonly beforeEffect?: ((answer: object, proof?: string) => Promise<void>) | undefined;
  /** Of the same: what an earlier call said there, whose answer was lost. */
  readonly promised?: Promised | undefined;
}

export interface Call<Name extends CallName> {
  /** Who may make it. */
  readonly role: Role;
  /** Whether it changes a domain, a repository or the host. */
  readonly mutates: boolean;
  /** The names that every request of it has, by field. */
  readonly names: Readonly<Record<string, NameKind>>;
  /** Fields that only an administrator may set, if there are any. */
  readonly administers?: readonly (keyof CallRequest<Name> & string)[];
  handler(
    this: void,
    context: ServiceContext,
    request: CallRequest<Name>,
    options: CallOptions,
  ): Promise<CallResult<Name>>;
}

/** The API as its users see it, whether it runs in this process or in an agent. */
export interface Api {
  /** Fails with a FleeceError, or with the signal's reason. */
  call<Name extends CallName>(
    name: Name,
    request: CallRequest<Name>,
    options?: CallOptions,
  ): Promise<CallResult<Name>>;
}
