import { signWords } from "../model/boot-test.js";
import { bootTest } from "../services/boot-test.js";
import type { ServiceContext } from "../services/context.js";
import { wantedBackup } from "./backup-reads.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type { BootTest } from "./messages.js";

export async function bootTestHandler(
  context: ServiceContext,
  { id, domain }: CallRequest<"Backups.BootTest">,
  { signal, onProgress }: CallOptions,
): Promise<BootTest> {
  const { entry, settings, durationMs, accelerator } = await bootTest(
    context,
    await wantedBackup(context, { id, domain }),
    { signal, onConsole: (consoleLine) => onProgress?.({ consoleLine }) },
  );
  return {
    ...{ backup: entry.id, domain: entry.domain },
    ...{ sign: signWords(settings.sign), durationMs, accelerator },
  };
}
