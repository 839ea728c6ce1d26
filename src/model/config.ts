import path from "node:path";
import { isMap, isScalar, LineCounter, parseDocument } from "yaml";
import type { Document } from "yaml";
import * as z from "zod";
import { FleeceError } from "../shared/errors.js";
import { formatBytes, KIB, MIB, parseBytes, parseDuration } from "../shared/units.js";
import { LOCAL_NAME, parseFingerprint, ROLES, type ClientEntry } from "./access.js";
import { type BackupLimits, NO_LIMITS } from "./backup-limits.js";
import { consoleSign, type BootSettings } from "./boot-test.js";
import { parseHostPort } from "./host-port.js";
import type { NameKind } from "./names.js";
import { isLocal, parseMetricsAddress } from "./metrics-address.js";
import type { MetricsAddress } from "./metrics-address.js";
import { checkName } from "./names.js";
import { DISK_FORMATS } from "./snapshot-plan.js";
import type { QuiesceSettings } from "./quiesce.js";
import type { RetentionPolicy } from "./retention.js";
import type { Job, JobLimits } from "./job.js";
import { Schedule, scheduleProblem } from "./schedule.js";
import { hostZone, isTimeZone } from "./time-zone.js";

/** The configuration file: see config/README.md, which a test keeps complete. Every path is absolute once it is parsed. */

const name = (kind: NameKind) =>
  z.string().superRefine((value, context) => {
    try {
      checkName(kind, value);
    } catch (error) {
      context.addIssue({ code: "custom", message: error instanceof Error ? error.message : String(error) });
    }
  });

const filePath = z
  .string()
  .min(1, "Expected a path, got an empty string")
  .refine((value) => !value.includes("\0"), {
    message: "Expected a path without NUL characters",
  });

/** In bytes once it is parsed. */
const size = z.union([z.string(), z.number()]).transform((value, context) => {
  const bytes = parseBytes(String(value));
  if (bytes !== undefined) return bytes;
  const message = `Expected a size like 512M, 10G or 1.5T, got ${JSON.stringify(value)}`;
  context.addIssue({ code: "custom", message });
  return z.NEVER;
});

/** An empty scratch image takes about 0.3 MiB by itself. */
const LEAST_SCRATCH_LIMIT_BYTES = MIB;

const scratchLimit = size.refine((bytes) => bytes >= LEAST_SCRATCH_LIMIT_BYTES, {
  message: `Expected at least ${formatBytes(LEAST_SCRATCH_LIMIT_BYTES)}`,
});
/** In milliseconds once it is parsed. */
const duration = z.string().transform((value, context) => {
  const ms = parseDuration(value);
  if (ms !== undefined && ms >= 1000 && ms <= 600_000) return ms;
  const message = `Expected a number of seconds or minutes with its unit, 1s to 10m, got ${JSON.stringify(value)}`;
  context.addIssue({ code: "custom", message });
  return z.NEVER;
});

/** QEMU counts in whole seconds. */
const cbwTimeout = duration.refine((ms) => ms % 1000 === 0, { message: "Expected whole seconds" });

const timeZone = z
  .string()
  .refine(isTimeZone, {
    error: ({ input }) => `Expected a time zone like Europe/Berlin or UTC, got ${JSON.stringify(input)}`,
  })
  .default(hostZone);

const disk = z.strictObject({
  target: name("disk"),
  file: filePath,
  format: z.enum(DISK_FORMATS),
});

const quiesce = z.strictObject({
  always: z.boolean().default(false),
  timeout: duration.default(10_000),
  onFailure: z.enum(["continue", "stop"]).default("continue"),
});

const machineFile = z.strictObject({
  name: z
    .string()
    .regex(
      /^\w[\w.-]{0,63}$/,
      "Expected 1 to 64 letters, digits and _ . - that start with a letter, digit or _",
    ),
  path: filePath,
});

const atLeastOne = z.int().min(1).max(100_000).optional();

const retention = z
  .strictObject({
    last: atLeastOne,
    daily: atLeastOne,
    weekly: atLeastOne,
    monthly: atLeastOne,
    yearly: atLeastOne,
    minimumChain: atLeastOne,
    maximumChainLength: atLeastOne,
    timeZone,
  })
  .refine(({ minimumChain = 1, maximumChainLength = minimumChain }) => minimumChain <= maximumChainLength, {
    message: "Expected at least `minimumChain`",
    path: ["maximumChainLength"],
  });

/** In milliseconds once it is parsed. */
const longWait = z.string().transform((value, context) => {
  const ms = parseDuration(value);
  if (ms !== undefined && ms >= 1000 && ms <= 12 * 3_600_000) return ms;
  const message = `Expected a duration like 90s, 10m or 1h, 1s to 12h, got ${JSON.stringify(value)}`;
  context.addIssue({ code: "custom", message });
  return z.NEVER;
});

const argumentList = z.array(z.string().refine((value) => !value.includes("\0"))).min(1);

const bootTest = z
  .strictObject({
    launch: argumentList.optional(),
    memory: size
      .refine((bytes) => bytes >= MIB, { message: `Expected at least ${formatBytes(MIB)}` })
      .optional(),
    console: z
      .string()
      .min(1)
      .refine(isConsoleSign, { message: "Expected a text, or a regular expression between slashes" })
      .optional(),
    guestAgent: z.boolean().default(false),
    timeout: longWait.default(300_000),
    accelerator: z.enum(["auto", "kvm", "tcg"]).default("auto"),
  })
  .refine((value) => value.console === undefined || !value.guestAgent, {
    message: "Expected either `console` or `guestAgent: true`, got both",
    path: ["console"],
  });

function isConsoleSign(text: string): boolean {
  try {
    consoleSign(text);
    return true;
  } catch {
    return false;
  }
}

const domain = z
  .strictObject({
    name: name("domain"),
    qmp: filePath.optional(),
    disks: z.array(disk).min(1).optional(),
    scratch: z.strictObject({ limit: scratchLimit }).optional(),
    guestAgent: filePath.optional(),
    quiesce: quiesce.optional(),
    launch: argumentList.optional(),
    bootTest: bootTest.optional(),
    /** Left out: `auto`. */
    exports: z.enum(["auto", "staged"]).optional(),
    retention: retention.optional(),
    machineFiles: z.array(machineFile).min(1).optional(),
  })
  .refine((value) => value.qmp !== undefined || value.disks !== undefined, {
    message: "Expected `qmp` (to reach the domain while it runs), `disks` (while it is inactive) or both",
  })
  .refine((value) => value.guestAgent === undefined || value.qmp !== undefined, {
    message: "Expected `qmp` beside `guestAgent`, which answers only while the domain runs",
    path: ["guestAgent"],
  })
  .refine((value) => value.quiesce === undefined || value.guestAgent !== undefined, {
    message: "Expected `guestAgent` (the agent's socket) beside `quiesce`",
    path: ["quiesce"],
  })
  .refine((value) => value.launch === undefined || value.qmp !== undefined, {
    message: "Expected `qmp` beside `launch`: a QEMU that is started must be reached",
    path: ["launch"],
  });

const hostPort = z.string().transform((value, context) => {
  const parsed = parseHostPort(value);
  if (parsed !== undefined) return parsed;
  const message = `Expected HOST:PORT, with an IPv6 address in brackets, got ${JSON.stringify(value)}`;
  context.addIssue({ code: "custom", message });
  return z.NEVER;
});

const fingerprint = z.string().transform((value, context) => {
  const parsed = parseFingerprint(value);
  if (parsed !== undefined) return parsed;
  const message = `Expected a SHA-256 fingerprint of 64 hexadecimal digits, got ${JSON.stringify(value)}`;
  context.addIssue({ code: "custom", message });
  return z.NEVER;
});

/** Common names of certificates have 64 characters at most. */
const clientName = z
  .string()
  .regex(/^\P{C}{1,64}$/u, "Expected 1 to 64 printable characters")
  .refine((value) => value !== LOCAL_NAME, {
    message: `Expected another name than ${LOCAL_NAME}, which is that of users without a certificate`,
  });

const client = z
  .strictObject({
    name: clientName.optional(),
    subject: clientName.optional(),
    fingerprint: fingerprint.optional(),
    role: z.enum(ROLES),
  })
  .refine((value) => (value.subject === undefined) !== (value.fingerprint === undefined), {
    message: "Expected either `subject` (the certificate's common name) or `fingerprint`",
  })
  .refine((value) => value.fingerprint === undefined || value.name !== undefined, {
    message: "Expected `name` beside `fingerprint`",
  });

const limit = (otherwise: number) => z.int().min(1).max(10_000).default(otherwise);

const apiLimits = z.strictObject({
  calls: limit(128),
  callsPerClient: limit(16),
  connections: limit(64),
  connectionsPerClient: limit(16),
});

const api = z
  .strictObject({
    socket: filePath.optional(),
    socketGroup: z.union([z.string().regex(/^\P{C}+$/u), z.int().min(0)]).optional(),
    socketRole: z.enum(ROLES).default("administrator"),
    tcp: z
      .strictObject({ address: hostPort, certificate: filePath, key: filePath, clientCa: filePath })
      .optional(),
    clients: z.array(client).min(1).optional(),
    limits: apiLimits.prefault({}),
    auditLog: filePath.optional(),
    shutdownGrace: duration.default(30_000),
  })
  .refine((value) => (value.tcp === undefined) === (value.clients === undefined), {
    message: "Expected `tcp` and `clients` together: without an entry, nobody may use the address",
  })
  .superRefine((value, context) => {
    for (const key of ["subject", "fingerprint"] as const) {
      const listed = value.clients?.map((entry) => entry[key]) ?? [];
      listed.forEach((item, index) => {
        if (item === undefined || listed.indexOf(item) === index) return;
        const message = `Expected one entry for each certificate, got two for ${JSON.stringify(item)}`;
        context.addIssue({ code: "custom", path: ["clients", index, key], message });
      });
    }
  });

const metrics = z
  .strictObject({
    address: z.string().refine((value) => parseMetricsAddress(value) !== undefined, {
      message: "Expected unix:/path, or an IP address and a port like 127.0.0.1:9108",
    }),
    allowRemote: z.boolean().default(false),
  })
  .refine(
    ({ address, allowRemote }) => {
      const parsed = parseMetricsAddress(address);
      return allowRemote || parsed === undefined || isLocal(parsed);
    },
    {
      message:
        "Expected an address of this host (unix:/path, 127.0.0.1:PORT), or `allowRemote: true` beside it",
      path: ["address"],
    },
  );

const connections = z.int().min(1).max(10_000);

const NBD_TLS_KEYS = ["certificate", "key", "clientCa"] as const;

const nbd = z
  .strictObject({
    address: hostPort.refine(({ port }) => port > 0, { message: "Expected HOST:PORT with a port from 1" }),
    certificate: filePath.optional(),
    key: filePath.optional(),
    clientCa: filePath.optional(),
    plaintext: z.boolean().default(false),
    connections: connections.default(64),
    connectionsPerClient: connections.default(16),
    handshakeTimeout: duration.default(15_000),
    idleTimeout: duration.default(300_000),
    bytesPerSecond: size
      .refine((bytes) => bytes >= KIB, { message: `Expected at least ${formatBytes(KIB)}` })
      .optional(),
  })
  .superRefine((value, context) => {
    for (const key of NBD_TLS_KEYS) {
      if ((value[key] === undefined) === value.plaintext) continue;
      const message = value.plaintext
        ? `Expected either \`plaintext: true\` or \`${key}\`, got both`
        : `Expected \`${key}\`: without TLS only if \`plaintext: true\` says so`;
      context.addIssue({ code: "custom", message, path: [key] });
    }
  });

const parallel = z.int().min(1).max(1000);

/** Programs are run in the directory /. */
const keyCommand = z
  .array(z.string())
  .refine(([program = ""]) => path.isAbsolute(program) || /^[^/]+$/.test(program), {
    message: "Expected a program, by its absolute path or a name to be looked for in PATH, and its arguments",
  });

const encryption = z
  .strictObject({ keyFile: filePath.optional(), keyCommand: keyCommand.optional() })
  .refine((value) => (value.keyFile === undefined) !== (value.keyCommand === undefined), {
    message: "Expected either `keyFile` or `keyCommand`",
  });

const repository = z
  .strictObject({
    name: name("repository"),
    path: filePath,
    concurrency: parallel.optional(),
    reserve: size.default(0),
    compression: z.enum(["none", "zstd"]).default("none"),
    encryption: encryption.optional(),
    retention: retention.optional(),
  })
  .refine((value) => value.encryption === undefined || value.compression === "none", {
    message: "Expected `compression: none` beside `encryption`: QEMU cannot do both in one image",
    path: ["compression"],
  });

/** In milliseconds once it is parsed. */
const jitter = z.string().transform((value, context) => {
  const ms = parseDuration(value);
  if (ms !== undefined && ms <= 12 * 3_600_000) return ms;
  const message = `Expected a duration like 90s, 10m or 1h, at most 12h, got ${JSON.stringify(value)}`;
  context.addIssue({ code: "custom", message });
  return z.NEVER;
});

const cron = z.string().superRefine((value, context) => {
  const problem = scheduleProblem(value);
  if (problem === undefined) return;
  const message = `Expected a cron expression like "30 2 * * *", got ${JSON.stringify(value)}: ${problem}`;
  context.addIssue({ code: "custom", message });
});

const command = z.array(z.string().min(1)).min(1, "Expected a program and its arguments");

const hook = z.strictObject({
  when: z.enum(["before", "after", "failed"]),
  command,
  timeout: duration.default(300_000),
  onFailure: z.enum(["continue", "stop"]).default("continue"),
});

const webhook = z.string().refine(isWebAddress, {
  message: "Expected an address like https://host/path, without a user name",
});

/** A line of a mail's head. */
const mailbox = z.string().regex(/^[\x20-\x7e]*@[\x20-\x7e]+$/, "Expected a mail address");

const report = z.strictObject({
  webhook: webhook.optional(),
  mail: z
    .strictObject({
      command: command.default(["/usr/sbin/sendmail", "-t", "-i"]),
      to: z.array(mailbox).min(1),
      from: mailbox,
      on: z.enum(["failure", "always"]).default("failure"),
    })
    .optional(),
});

function isWebAddress(value: string): boolean {
  if (!URL.canParse(value)) return false;
  const { protocol, username, password } = new URL(value);
  return ["http:", "https:"].includes(protocol) && username === "" && password === "";
}

/** Less would let single blocks wait for a good part of a second. */
const LEAST_RATE = MIB;

const rate = size
  .refine((bytes) => bytes >= LEAST_RATE, {
    message: `Expected at least ${formatBytes(LEAST_RATE)} a second`,
  })
  .optional();

const timeOfDay = z
  .string()
  .regex(/^([01]\d|2[0-3]):[0-5]\d$/, 'Expected a time of day from "00:00" to "23:59"');

const hourlyRates = z
  .strictObject({ from: timeOfDay, until: timeOfDay, read: rate, write: rate })
  .refine(({ from, until }) => from !== until, {
    message: "Expected another time than `from`",
    path: ["until"],
  })
  .refine(({ read, write }) => read !== undefined || write !== undefined, {
    message: "Expected `read`, `write` or both",
  });

/** In milliseconds once it is parsed. */
const latency = z.string().transform((value, context) => {
  const [, ms] = /^(\d{1,5})ms$/.exec(value) ?? [];
  if (ms !== undefined && Number(ms) >= 1 && Number(ms) <= 10_000) return Number(ms);
  const message = `Expected 1ms to 10000ms, got ${JSON.stringify(value)}`;
  context.addIssue({ code: "custom", message });
  return z.NEVER;
});

const limitKeys = {
  read: rate,
  write: rate,
  hours: z.array(hourlyRates).default([]),
  guestLatency: latency.optional(),
};

const job = z.strictObject({
  name: name("job"),
  kind: z.enum(["backup", "verify"]).default("backup"),
  schedule: cron,
  timeZone,
  domains: z.union([z.literal("all"), z.array(name("domain")).min(1)]),
  repository: name("repository").optional(),
  copyTo: name("repository").optional(),
  level: z.enum(["auto", "full", "incremental"]).default("auto"),
  quiesce: z.boolean().optional(),
  notAfter: z
    .string()
    .regex(/^([01]\d|2[0-3]):[0-5]\d$/, 'Expected a time of day from "00:00" to "23:59"')
    .optional(),
  jitter: jitter.default(0),
  retries: z.int().min(0).max(20).default(3),
  catchUp: z.boolean().default(true),
  hooks: z.array(hook).default([]),
  report: report.optional(),
  bootTest: z.strictObject({ budget: longWait.default(900_000) }).optional(),
  verify: z.strictObject({ after: z.boolean().default(true), budget: jitter.default(0) }).optional(),
  limits: z.strictObject(limitKeys).optional(),
});

/** By key. */
function problemsOfKind(entry: z.infer<typeof job>): readonly (readonly [string, string])[] {
  if (entry.kind === "backup") return [];
  const ofBackups = (["quiesce", "limits", "copyTo", "bootTest"] as const).filter(
    (key) => entry[key] !== undefined,
  );
  const problems = [...(entry.level === "auto" ? [] : ["level"]), ...ofBackups].map(
    (key) => [key, "Expected none: a job that verifies takes no backups"] as const,
  );
  const hasBudget = (entry.verify?.budget ?? 0) > 0;
  return hasBudget
    ? problems
    : [...problems, ["verify", "Expected a `budget` of a job that verifies"] as const];
}

/** From 0 to 1 once it is parsed. */
const share = z.union([z.string(), z.number()]).transform((value, context) => {
  const text = String(value);
  const percent = /^\d{1,3}(\.\d{1,6})?%$/.test(text) ? Number(text.slice(0, -1)) : Infinity;
  if (percent <= 100) return percent / 100;
  const message = `Expected a share like 0.1% or 100%, got ${JSON.stringify(value)}`;
  context.addIssue({ code: "custom", message });
  return z.NEVER;
});

export const configSchema = z
  .strictObject({
    stateDir: filePath,
    scratchDir: filePath,
    scratch: z
      .strictObject({
        limit: scratchLimit.optional(),
        reserve: size.default(0),
        cbwTimeout: cbwTimeout.default(4000),
      })
      .default({ reserve: 0, cbwTimeout: 4000 }),
    runtimeDir: filePath.optional(),
    api: api.prefault({}),
    nbd: nbd.optional(),
    metrics: metrics.optional(),
    logLevel: z.enum(["trace", "debug", "info", "warn", "error", "silent"]).default("warn"),
    parallelDisks: z.int().min(1).max(64).default(4),
    sample: share.default(0),
    limits: z.strictObject({ ...limitKeys, timeZone }).optional(),
    /** From 0 to 7: of the best-effort class, as in ionice(1). */
    ioPriority: z.union([z.literal("idle"), z.int().min(0).max(7)]).optional(),
    domains: z.array(domain).min(1),
    repositories: z.array(repository).min(1),
    concurrency: z.strictObject({ domains: parallel.default(2) }).prefault({}),
    jobs: z.array(job).default([]),
  })
  .superRefine((value, context) => {
    reportRepeats(
      context,
      ["domains"],
      value.domains.map((entry) => entry.name),
    );
    reportRepeats(
      context,
      ["repositories"],
      value.repositories.map((entry) => entry.name),
    );
    value.domains.forEach((entry, index) => {
      const targets = entry.disks?.map(({ target }) => target) ?? [];
      reportRepeats(context, ["domains", index, "disks"], targets, "target");
      const files = entry.machineFiles?.map((file) => file.name) ?? [];
      reportRepeats(context, ["domains", index, "machineFiles"], files);
    });
    reportRepeats(
      context,
      ["jobs"],
      value.jobs.map((entry) => entry.name),
    );
    value.jobs.forEach((entry, index) => {
      for (const [key, message] of problemsOfKind(entry)) {
        context.addIssue({ code: "custom", message, path: ["jobs", index, key] });
      }
      const listed = entry.domains === "all" ? [] : entry.domains;
      const unknown = listed.filter((item) => !value.domains.some((known) => known.name === item));
      for (const item of unknown) {
        const message = `Expected names of \`domains\`, or all; there is no ${item}`;
        context.addIssue({ code: "custom", message, path: ["jobs", index, "domains"] });
      }
      for (const key of ["repository", "copyTo"] as const) {
        const named = entry[key];
        if (named === undefined || value.repositories.some((known) => known.name === named)) continue;
        const message = `Expected a name of \`repositories\`, there is no ${named}`;
        context.addIssue({ code: "custom", message, path: ["jobs", index, key] });
      }
      const own = entry.repository ?? value.repositories[0]?.name;
      if (own === undefined || entry.copyTo !== own) return;
      const message = `Expected another repository than the one that backups are taken to, got ${own}`;
      context.addIssue({ code: "custom", message, path: ["jobs", index, "copyTo"] });
    });
  });

export type Config = z.infer<typeof configSchema>;
type Encryption = z.infer<typeof encryption>;
export type NbdConfig = NonNullable<Config["nbd"]>;
export type DomainConfig = Config["domains"][number];
export type DiskConfig = NonNullable<DomainConfig["disks"]>[number];

/** Without domains, which no file may be; all other settings have their defaults. All paths are absolute. */
export function configOfRepository(path: string, stateDir: string, keyFile?: string): Config {
  const settings = {
    ...{ stateDir, scratchDir: stateDir },
    domains: [{ name: "none", qmp: stateDir }],
    repositories: [
      { name: "directory", path, ...(keyFile === undefined ? {} : { encryption: { keyFile } }) },
    ],
  };
  return { ...configSchema.parse(settings), domains: [] };
}

/** Undefined: metrics are not served. */
export function metricsAddress({ metrics: keys }: Config): MetricsAddress | undefined {
  return keys === undefined ? undefined : parseMetricsAddress(keys.address);
}

/** The clients of the TCP address, by their certificates. */
export function clientEntries({ api: { clients = [] } }: Config): readonly ClientEntry[] {
  return clients.map(({ name: given, subject, fingerprint: print, role }) => ({
    name: given ?? subject ?? "",
    subject,
    fingerprint: print,
    role,
  }));
}

/** Which backups of a domain stay in a repository; undefined: all. What the domain says counts, as a whole. */
export function retentionPolicy(
  { domains, repositories }: Config,
  repositoryName: string,
  domainName: string,
): RetentionPolicy | undefined {
  const own = domains.find((entry) => entry.name === domainName)?.retention;
  return own ?? repositories.find((entry) => entry.name === repositoryName)?.retention;
}

/** How backups of the domain are booted to prove them. */
export function bootSettings({ bootTest: keys, disks = [] }: DomainConfig): BootSettings {
  const { launch, memory, console, guestAgent, timeout, accelerator } = keys ?? bootTest.parse({});
  return {
    ...{ launch, accelerator, memoryBytes: memory, timeoutMs: timeout },
    files: new Map(disks.map(({ target, file }) => [target, file])),
    sign: guestAgent ? { kind: "guest-agent" } : consoleSign(console ?? "login:"),
  };
}

/** Undefined for a domain without a guest agent. */
export function quiesceSettings({ guestAgent, quiesce: keys }: DomainConfig): QuiesceSettings | undefined {
  if (guestAgent === undefined) return undefined;
  const { always, timeout, onFailure } = keys ?? quiesce.parse({});
  return { byDefault: always, timeoutMs: timeout, onFailure };
}

/** In the order of the configuration. */
export function configuredJobs({ jobs, domains, repositories }: Config): readonly Job[] {
  return jobs.map((entry) => ({
    name: entry.name,
    kind: entry.kind,
    schedule: new Schedule(entry.schedule, entry.timeZone),
    domains: entry.domains === "all" ? domains.map((listed) => listed.name) : [...new Set(entry.domains)],
    repository: entry.repository ?? repositories[0]?.name ?? "",
    copyTo: entry.copyTo,
    level: entry.level === "auto" ? undefined : entry.level,
    quiesce: entry.quiesce,
    notAfter: entry.notAfter,
    jitterMs: entry.jitter,
    retries: entry.retries,
    catchUp: entry.catchUp,
    hooks: entry.hooks.map(({ timeout, ...keys }) => ({ ...keys, timeoutMs: timeout })),
    report: entry.report && { webhook: entry.report.webhook, mail: entry.report.mail },
    bootTest: entry.bootTest && { budgetMs: entry.bootTest.budget },
    verify: entry.verify && { after: entry.verify.after, budgetMs: entry.verify.budget },
    limits: entry.limits && backupLimits(entry.limits, entry.timeZone),
  }));
}

/** Of backups that somebody asks for, and of jobs that have none of their own. */
export function defaultLimits({ limits }: Config): BackupLimits {
  return limits === undefined ? NO_LIMITS : backupLimits(limits, limits.timeZone);
}

function backupLimits(
  { read, write, hours, guestLatency }: NonNullable<Config["jobs"][number]["limits"]>,
  zone: string,
): BackupLimits {
  return {
    readBytesPerSecond: read,
    writeBytesPerSecond: write,
    hours: hours.map((entry) => ({
      fromMinute: minuteOf(entry.from),
      untilMinute: minuteOf(entry.until),
      readBytesPerSecond: entry.read,
      writeBytesPerSecond: entry.write,
    })),
    timeZone: zone,
    guestLatencyMs: guestLatency,
  };
}

function minuteOf(time: string): number {
  return Number(time.slice(0, 2)) * 60 + Number(time.slice(3));
}

export function jobLimits({ concurrency, repositories }: Config): JobLimits {
  return {
    domains: concurrency.domains,
    repositories: new Map(
      repositories.flatMap((entry) =>
        entry.concurrency === undefined ? [] : [[entry.name, entry.concurrency]],
      ),
    ),
  };
}

/** Undefined where there is no TLS. */
export function nbdTlsPaths({
  certificate,
  key,
  clientCa,
}: NbdConfig): { readonly certificate: string; readonly key: string; readonly ca: string } | undefined {
  if (certificate === undefined || key === undefined || clientCa === undefined) return undefined;
  return { certificate, key, ca: clientCa };
}

function reportRepeats(
  context: z.RefinementCtx,
  at: (string | number)[],
  names: readonly string[],
  key = "name",
): void {
  names.forEach((value, index) => {
    if (names.indexOf(value) === index) return;
    const message = `Expected different names, got ${JSON.stringify(value)} twice`;
    context.addIssue({ code: "custom", path: [...at, index, key], message });
  });
}

/**
 * Reads a configuration from its text. Relative paths count from the file's own directory. Throws CONFIG_INVALID with
 * every problem on a line of its own, as `file:line:column: key.path: what was expected and what came`.
 */
export function parseConfig(text: string, file: string): Config {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const at = (offset: number): string => {
    const { line, col } = lines.linePos(offset);
    return `${file}:${line}:${col}`;
  };
  if (document.errors.length > 0) {
    throw invalid(document.errors.map((error) => `${at(error.pos[0])}: ${error.message}`));
  }
  const parsed = configSchema.safeParse(document.toJS());
  if (!parsed.success) {
    throw invalid(
      parsed.error.issues.flatMap((issue) => {
        const keys = issue.code === "unrecognized_keys" ? issue.keys : [undefined];
        return keys.map((key) => {
          const where = key === undefined ? issue.path : [...issue.path, key];
          const message = key === undefined ? issue.message : "Unknown key";
          return `${at(offsetOf(document, where))}: ${where.map(String).join(".") || "(file)"}: ${message}`;
        });
      }),
    );
  }
  return absolute(parsed.data, path.dirname(path.resolve(file)));
}

function invalid(problems: readonly string[]): FleeceError {
  return new FleeceError("CONFIG_INVALID", problems.join("\n"), { facts: { problems } });
}

/** Where the key of a path stands in the file; for a key that is missing, where its nearest ancestor stands. */
function offsetOf(document: Document, where: readonly PropertyKey[]): number {
  for (let depth = where.length; depth > 0; depth--) {
    const parent = document.getIn(where.slice(0, depth - 1), true);
    const last = where[depth - 1];
    if (isMap(parent)) {
      const pair = parent.items.find(({ key }) => isScalar(key) && key.value === last);
      if (isScalar(pair?.key) && pair.key.range) return pair.key.range[0];
    }
    const node: unknown = document.getIn(where.slice(0, depth), true);
    if (hasRange(node)) return node.range[0];
  }
  return hasRange(document.contents) ? document.contents.range[0] : 0;
}

function hasRange(node: unknown): node is { range: readonly [number, number, number] } {
  return typeof node === "object" && node !== null && "range" in node && Array.isArray(node.range);
}

function absolute(config: Config, base: string): Config {
  const from = (value: string): string => path.resolve(base, value);
  return {
    ...config,
    stateDir: from(config.stateDir),
    scratchDir: from(config.scratchDir),
    ...(config.runtimeDir === undefined ? {} : { runtimeDir: from(config.runtimeDir) }),
    api: {
      ...config.api,
      ...(config.api.socket === undefined ? {} : { socket: from(config.api.socket) }),
      ...(config.api.auditLog === undefined ? {} : { auditLog: from(config.api.auditLog) }),
      ...(config.api.tcp === undefined
        ? {}
        : {
            tcp: {
              address: config.api.tcp.address,
              certificate: from(config.api.tcp.certificate),
              key: from(config.api.tcp.key),
              clientCa: from(config.api.tcp.clientCa),
            },
          }),
    },
    ...(config.nbd === undefined ? {} : { nbd: absoluteNbd(config.nbd, from) }),
    domains: config.domains.map((entry) => ({
      ...entry,
      ...(entry.qmp === undefined ? {} : { qmp: from(entry.qmp) }),
      ...(entry.guestAgent === undefined ? {} : { guestAgent: from(entry.guestAgent) }),
      ...(entry.disks === undefined
        ? {}
        : { disks: entry.disks.map((listed) => ({ ...listed, file: from(listed.file) })) }),
      ...(entry.machineFiles === undefined
        ? {}
        : { machineFiles: entry.machineFiles.map((listed) => ({ ...listed, path: from(listed.path) })) }),
    })),
    repositories: config.repositories.map((entry) => ({
      ...entry,
      path: from(entry.path),
      ...(entry.encryption === undefined ? {} : { encryption: absoluteKey(entry.encryption, from) }),
    })),
  };
}

function absoluteKey(keys: Encryption, from: (value: string) => string): Encryption {
  return keys.keyFile === undefined ? keys : { keyFile: from(keys.keyFile) };
}

function absoluteNbd(keys: NbdConfig, from: (value: string) => string): NbdConfig {
  const paths = NBD_TLS_KEYS.flatMap((key) => {
    const value = keys[key];
    return value === undefined ? [] : [[key, from(value)] as const];
  });
  return { ...keys, ...Object.fromEntries(paths) };
}
