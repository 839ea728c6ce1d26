import type { BackupEntry, IntactEntry } from "../model/backup.js";
import { filesOfDisk } from "../model/domain-snapshot.js";
import type { BootSettings } from "../model/boot-test.js";
import type { BootDisk, Booted } from "../ports/boot-machines.js";
import type { OpenBackup } from "../ports/repository.js";
import type { StateStore } from "../ports/state-store.js";
import { errorMessage, FleeceError, isFleeceError } from "../shared/errors.js";
import { randomId } from "../shared/ids.js";
import { formatBytes } from "../shared/units.js";
import { type BackupNote, backupNoteName, readBackupNote, writeBackupNote } from "./backup-notes.js";
import { findReadable } from "./backup-catalog.js";
import { requireDomain, type ServiceContext } from "./context.js";
import { Operation } from "./operation.js";
import { withWatch } from "./watch.js";

export interface BootTestOptions {
  readonly signal?: AbortSignal | undefined;
  /** The last line on the guest's serial console, now and then. */
  readonly onConsole?: ((line: string) => void) | undefined;
}

export interface BootTestResult extends Booted {
  readonly entry: IntactEntry;
  readonly settings: BootSettings;
}

/** What is remembered of the last boot test of a backup. */
export interface BootTestNote extends BackupNote {
  /** Why it did not come up; undefined: it did. */
  readonly failure?: string;
}

/** Undefined if none is remembered. */
export async function lastBootTest(
  store: StateStore,
  backup: Pick<BackupEntry, "repository" | "id">,
): Promise<BootTestNote | undefined> {
  return readBackupNote<BootTestNote>(store, "boot-tests", [backupNoteName(backup)]);
}

/**
 * Boots a throw-away machine on the disks of a backup, and remembers what came of it as long as there is the backup. What the guest writes
 * goes to overlays in the scratch directory, within its bounds. Fails with BOOT_FAILED, UNSUPPORTED, NO_SPACE, DOMAIN_NOT_FOUND, or as opening
 * the backup does.
 */
export async function bootTest(
  context: ServiceContext,
  wanted: Pick<BackupEntry, "repository" | "id">,
  options: BootTestOptions = {},
): Promise<BootTestResult> {
  const { repository, entry } = await findReadable(context, wanted.id, wanted.repository);
  const settings = bootSettings(context, entry.domain);
  const machine = await machineOf(context, entry.domain, settings);
  await context.scratch.check();
  const { domain } = entry;
  const operation = Operation.prepare(context.store, {
    ...{ id: randomId(8), domain, startedAtMs: context.clock.now() },
    subject: { kind: "boot-test", backupId: wanted.id },
  });
  const directory = `${context.scratchDir}/boot-${operation.record.id}`;
  const undo = { kind: "directory", path: directory } as const;
  await operation.register(undo);
  try {
    await using backup = await repository.open(
      entry,
      options.signal === undefined ? {} : { signal: options.signal },
    );
    const copies = await copyMachineFiles(context, entry, backup, { directory, signal: options.signal });
    const disks = await bootDisks(context, entry, backup, { ...machine, settings, directory });
    const overlays = disks.map(({ overlay }) => overlay);
    const look = (): Promise<void> => checkScratch(context, { domain, overlays });
    await look();
    const watch = { look, facts: { domain }, signal: options.signal };
    const { onConsole } = options;
    const booted = await withWatch(context, watch, (signal) =>
      context.bootMachines.boot({ settings, ...machine, disks, copies, directory, signal, onConsole }),
    );
    await remember(context, entry, undefined);
    return { ...booted, entry, settings };
  } catch (error) {
    if (!isFleeceError(error, "BOOT_FAILED")) throw error;
    await remember(context, entry, errorMessage(error));
    throw new FleeceError("BOOT_FAILED", `Backup ${entry.id} of ${domain}: ${errorMessage(error)}`, {
      cause: error,
      facts: { ...error.facts, backup: entry.id },
    });
  } finally {
    await context.host.undo(undo);
    await operation.end();
  }
}

function bootSettings(context: ServiceContext, domain: string): BootSettings {
  const settings = context.bootTests.get(requireDomain(context, domain));
  if (settings !== undefined) return settings;
  throw new FleeceError("INTERNAL", `Expected boot settings of domain ${domain}, found none`);
}

/** Its own list counts first, then the domain's, then what the domain's QEMU runs with. */
async function machineOf(
  { machines, bootMachines }: ServiceContext,
  domain: string,
  { launch: own }: BootSettings,
): Promise<{ readonly launch: readonly string[]; readonly cwd: string }> {
  const launch = own ?? machines.settings(domain).launch;
  if (launch !== undefined) return { launch, cwd: "/" };
  const running = await bootMachines.running(domain);
  if (running !== undefined) return { launch: running.arguments, cwd: running.cwd };
  throw new FleeceError(
    "UNSUPPORTED",
    `Nobody knows how to start a machine for domain ${domain}: it does not run, or this user may not look at its QEMU, and the configuration has neither \`bootTest.launch\` nor \`launch\` for it`,
    { facts: { domain } },
  );
}

/** With every name that a disk has had, and with its target alone, by which a list of its own may call it. */
async function bootDisks(
  { domainSnapshots }: ServiceContext,
  { domain, manifest }: IntactEntry,
  backup: OpenBackup,
  {
    settings,
    cwd,
    directory,
  }: { readonly settings: BootSettings; readonly cwd: string; readonly directory: string },
): Promise<readonly BootDisk[]> {
  const all = await domainSnapshots.read(domain);
  return backup.addresses.map((address, index) => {
    const { target } = address;
    const { sourceFile } = manifest.disks.find((disk) => disk.target === target) ?? {};
    const known = [sourceFile, settings.files.get(target)].flatMap((file) => file ?? []);
    const bare = cwd.endsWith("/") ? `${cwd}${target}` : `${cwd}/${target}`;
    const files = [...new Set([...known, ...filesOfDisk(all, target), bare])];
    return { address, files, overlay: `${directory}/disk-${index}.qcow2` };
  });
}

/** The machine files of the backup by the paths where the domain has them: UEFI variables are written to. */
async function copyMachineFiles(
  { machineFiles }: ServiceContext,
  { domain, manifest }: IntactEntry,
  backup: OpenBackup,
  { directory, signal }: { readonly directory: string; readonly signal: AbortSignal | undefined },
): Promise<ReadonlyMap<string, string>> {
  const stored = manifest.machineFiles ?? [];
  if (stored.length === 0) return new Map();
  const copyTo = `${directory}/machine`;
  const configured = machineFiles.get(domain) ?? [];
  await backup.checkMachineFiles({ copyTo, ...(signal === undefined ? {} : { signal }) });
  return new Map(
    stored.flatMap(({ path }) => {
      const [name = "", ...rest] = path.split("/");
      const from = configured.find((file) => file.name === name)?.path;
      return from === undefined ? [] : [[[from, ...rest].join("/"), `${copyTo}/${path}`] as const];
    }),
  );
}

interface Overlays {
  readonly domain: string;
  readonly overlays: readonly string[];
}

/** Fails with NO_SPACE when the overlays take more than they may, or leave less than the reserve. */
async function checkScratch(
  { scratch, scratchLimits }: ServiceContext,
  { domain, overlays }: Overlays,
): Promise<void> {
  await scratch.check();
  const limitBytes = scratchLimits.get(domain);
  if (limitBytes === undefined || (await scratch.usedBytes(overlays)) <= limitBytes) return;
  const limit = `the limit of ${formatBytes(limitBytes)}`;
  throw new FleeceError(
    "NO_SPACE",
    `What the guest writes takes more in the scratch directory than ${limit}`,
  );
}

/** The boot test counts also if it cannot be remembered. */
async function remember(
  context: ServiceContext,
  backup: IntactEntry,
  failure: string | undefined,
): Promise<void> {
  const { clock, log, meter } = context;
  const { domain, id } = backup;
  const note: BootTestNote = {
    ...{ schemaVersion: 1, timeMs: clock.now() },
    ...(failure === undefined ? {} : { failure }),
  };
  meter.backupBooted(domain, failure === undefined ? "booted" : "failed");
  try {
    await writeBackupNote(context, "boot-tests", backup, note, (listed) => [backupNoteName(listed)]);
  } catch (error) {
    log.warn({ backup: id }, `Cannot remember that the backup was booted: ${errorMessage(error)}`);
  }
}
