import { readCapabilities, type Capabilities } from "./capabilities.js";
import { describeOneExport, listAllExports, listContexts } from "./handshake.js";
import { leaveHandshake, negotiate, type Negotiable } from "./negotiation.js";
import type { ExportDetails } from "./option-go.js";
import type { ListedExport } from "./option-list.js";
import type { BesideUri, NbdExportOptions, NbdListContextsOptions, NbdServerOptions } from "./options.js";
import { checkServer, checkString, resolveTarget } from "./target.js";

/** The exports that a server lists, over a connection of its own. Servers may hide exports that exist. */
export async function listExports(
  target: string | NbdServerOptions,
  besideUri: BesideUri<NbdServerOptions> = {},
): Promise<readonly ListedExport[]> {
  return await query(resolveTarget(target, besideUri), listAllExports);
}

/** What a server says about an export that is not entered. */
export interface ExportDescription extends Omit<ExportDetails, "transmissionFlags">, Capabilities {}

/**
 * Asks about an export over a connection of its own, without entering it. Rejects as `connectNbd` does, and with
 * `OPTION_REFUSED` if the server cannot be asked.
 */
export async function describeExport(
  target: string | NbdExportOptions,
  besideUri: BesideUri<NbdExportOptions> = {},
): Promise<ExportDescription> {
  const options = resolveTarget(target, besideUri);
  checkString(options.exportName);
  const details = await query(options, (send, greeted) =>
    describeOneExport(send, options.exportName, greeted),
  );
  const { transmissionFlags, ...rest } = details;
  return { ...rest, ...readCapabilities(transmissionFlags) };
}

/**
 * The names of the metadata contexts that an export offers and that match the queries, over a connection of its own.
 * Empty if the server knows no contexts at all.
 */
export async function listMetaContexts(
  target: string | NbdListContextsOptions,
  besideUri: BesideUri<NbdListContextsOptions> = {},
): Promise<readonly string[]> {
  const options = resolveTarget(target, besideUri);
  const { exportName, queries = [] } = options;
  for (const text of [exportName, ...queries]) checkString(text);
  return await query(options, (send, greeted) => listContexts(send, exportName, queries, greeted));
}

/** Asks one question and leaves in good order. */
async function query<T>(options: NbdServerOptions, handshake: Negotiable<T, T>["handshake"]): Promise<T> {
  return await negotiate({
    ...(await checkServer(options)),
    handshake,
    done: (answer, transport) => {
      leaveHandshake(transport);
      return answer;
    },
  });
}
