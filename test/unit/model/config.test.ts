import { describe, expect, it } from "vitest";
import { isLimited } from "../../../src/model/backup-limits.js";
import {
  bootSettings,
  configuredJobs,
  defaultLimits,
  jobLimits,
  parseConfig,
  quiesceSettings,
} from "../../../src/model/config.js";
import { Schedule } from "../../../src/model/schedule.js";
import { FleeceError } from "../../../src/shared/errors.js";

const LEAST = `stateDir: ./state
scratchDir: scratch
domains:
  - name: web01
    qmp: /run/web01.qmp
    disks:
      - { target: vda, file: ../images/web01.qcow2, format: qcow2 }
repositories:
  - { name: default, path: backups }
`;

function problemsOf(text: string): readonly string[] {
  try {
    parseConfig(text, "/etc/fleece/c.yaml");
  } catch (error) {
    if (!(error instanceof FleeceError) || error.code !== "CONFIG_INVALID") throw error;
    expect(error.facts["problems"]).toEqual(error.message.split("\n"));
    return error.message.split("\n");
  }
  return [];
}

describe("parseConfig", () => {
  it("reads sizes of scratch space in binary units, for all domains and for one", () => {
    const one = LEAST.replace("    disks:", "    scratch: { limit: 1.5G }\n    disks:");
    const all = "scratch: { limit: 10G, reserve: 4096, cbwTimeout: 1.5m }";
    const { scratch, domains } = parseConfig(`${one}${all}\n`, "/c.yaml");
    expect(scratch).toEqual({ limit: 10 * 2 ** 30, reserve: 4096, cbwTimeout: 90_000 });
    expect(domains[0]?.scratch).toEqual({ limit: 1.5 * 2 ** 30 });
  });

  it.each([
    ["limit: 10GB", 'scratch.limit: Expected a size like 512M, 10G or 1.5T, got "10GB"'],
    ["limit: -5", "scratch.limit: Expected a size like 512M, 10G or 1.5T, got -5"],
    ["limit: 512K", "scratch.limit: Expected at least 1 MiB"],
    ["reserve: 9000000T", 'scratch.reserve: Expected a size like 512M, 10G or 1.5T, got "9000000T"'],
    ["cbwTimeout: 1.5s", "scratch.cbwTimeout: Expected whole seconds"],
    [
      "cbwTimeout: 0s",
      'scratch.cbwTimeout: Expected a number of seconds or minutes with its unit, 1s to 10m, got "0s"',
    ],
    [
      "cbwTimeout: 11m",
      'scratch.cbwTimeout: Expected a number of seconds or minutes with its unit, 1s to 10m, got "11m"',
    ],
  ])("refuses %s for scratch space", (setting, problem) => {
    expect(problemsOf(`${LEAST}scratch: { ${setting} }\n`)).toEqual([
      expect.stringMatching(new RegExp(`:10:\\d+: ${problem.replace(/[.]/g, "\\.")}$`)),
    ]);
  });

  const TCP = "tcp: { address: 'h:1', certificate: c, key: k, clientCa: ca }";
  it.each([
    ["tcp: { address: 'h:1', certificate: c, key: k, clientCa: ca }", "`tcp` and `clients` together"],
    ["clients: [{ subject: a, role: viewer }]", "`tcp` and `clients` together"],
    ["tcp: { address: 'h', certificate: c, key: k, clientCa: ca }", "Expected HOST:PORT"],
    ["tcp: { address: 'h:1', certificate: c, key: k }", "api.tcp.clientCa"],
    [`${TCP}, clients: [{ role: viewer }]`, "either `subject`"],
    [`${TCP}, clients: [{ subject: local, role: viewer }]`, "another name than local"],
    [`${TCP}, clients: [{ fingerprint: '${"ab".repeat(32)}', role: viewer }]`, "Expected `name`"],
    [`${TCP}, clients: [{ name: a, fingerprint: abc, role: viewer }]`, "SHA-256 fingerprint"],
    [`${TCP}, clients: [{ subject: a, role: root }]`, "api.clients.0.role"],
    [`${TCP}, clients: [{ subject: a, role: viewer }, { subject: a, role: operator }]`, "one entry for each"],
  ])("refuses %s for the API", (keys, problem) => {
    expect(problemsOf(`${LEAST}api: { ${keys} }\n`).join("\n")).toContain(problem);
  });

  it("reads where exports are offered to remote readers, with defaults and absolute paths", () => {
    const tls = "certificate: c.pem, key: /k.pem, clientCa: ../ca.pem";
    const text = `${LEAST}nbd: { address: "[::1]:10809", ${tls}, bytesPerSecond: 100M }\n`;
    expect(parseConfig(text, "/etc/fleece/c.yaml").nbd).toEqual({
      address: { host: "::1", port: 10809 },
      certificate: "/etc/fleece/c.pem",
      key: "/k.pem",
      clientCa: "/etc/ca.pem",
      plaintext: false,
      connections: 64,
      connectionsPerClient: 16,
      handshakeTimeout: 15_000,
      idleTimeout: 300_000,
      bytesPerSecond: 100 * 2 ** 20,
    });
  });

  it.each([
    [
      "address: 10.0.0.1:1",
      ["certificate", "key", "clientCa"].map((key) => `nbd.${key}: Expected \`${key}\`: without TLS only`),
    ],
    ["address: 10.0.0.1:1, plaintext: true, key: k", ["nbd.key: Expected either `plaintext: true` or `key`"]],
    ["address: 10.0.0.1, plaintext: true", ["nbd.address: Expected HOST:PORT"]],
    ["address: 10.0.0.1:0, plaintext: true", ["nbd.address: Expected HOST:PORT"]],
    ["address: h:1, plaintext: true, bytesPerSecond: 1", ["nbd.bytesPerSecond: Expected at least 1 KiB"]],
  ])("refuses nbd: { %s }", (keys, problems) => {
    expect(problemsOf(`${LEAST}nbd: { ${keys} }\n`)).toEqual(
      problems.map((problem) => expect.stringContaining(problem) as string),
    );
  });

  const JOB = 'name: a, schedule: "0 0 * * *", domains: all, timeZone: Europe/Berlin';

  it("reads what backups may take, for all of them and for a job", () => {
    const hours = '[{ from: "22:30", until: "06:00", write: 1M }]';
    const own = `jobs: [{ ${JOB}, limits: { guestLatency: 20ms, hours: ${hours} } }, { ${JOB.replace("name: a", "name: b")} }]`;
    const config = parseConfig(`${LEAST}limits: { read: 1.5G, timeZone: UTC }\n${own}\n`, "/c.yaml");
    expect(defaultLimits(config)).toEqual({
      readBytesPerSecond: 1.5 * 2 ** 30,
      writeBytesPerSecond: undefined,
      hours: [],
      timeZone: "UTC",
      guestLatencyMs: undefined,
    });
    expect(configuredJobs(config).map(({ limits }) => limits)).toEqual([
      {
        readBytesPerSecond: undefined,
        writeBytesPerSecond: undefined,
        hours: [{ fromMinute: 1350, untilMinute: 360, writeBytesPerSecond: 2 ** 20 }],
        timeZone: "Europe/Berlin",
        guestLatencyMs: 20,
      },
      undefined,
    ]);
    expect(isLimited(defaultLimits(parseConfig(LEAST, "/c.yaml")))).toBe(false);
  });

  it.each([
    ["read: 512K", "limits.read: Expected at least 1 MiB a second"],
    ["guestLatency: 20s", 'limits.guestLatency: Expected 1ms to 10000ms, got "20s"'],
    ["guestLatency: 0ms", 'limits.guestLatency: Expected 1ms to 10000ms, got "0ms"'],
    [
      'hours: [{ from: "8:00", until: "18:00", read: 1M }]',
      'limits.hours.0.from: Expected a time of day from "00:00" to "23:59"',
    ],
    [
      'hours: [{ from: "08:00", until: "08:00", read: 1M }]',
      "limits.hours.0.until: Expected another time than `from`",
    ],
    ['hours: [{ from: "08:00", until: "09:00" }]', "limits.hours.0: Expected `read`, `write` or both"],
  ])("refuses limits: { %s }", (keys, problem) => {
    expect(problemsOf(`${LEAST}limits: { ${keys} }\n`)).toEqual([expect.stringContaining(problem)]);
  });

  it("resolves every path from the file's directory and fills in the defaults", () => {
    expect(parseConfig(LEAST, "/etc/fleece/c.yaml")).toEqual({
      stateDir: "/etc/fleece/state",
      scratchDir: "/etc/fleece/scratch",
      scratch: { reserve: 0, cbwTimeout: 4000 },
      api: {
        shutdownGrace: 30_000,
        socketRole: "administrator",
        limits: { calls: 128, callsPerClient: 16, connections: 64, connectionsPerClient: 16 },
      },
      logLevel: "warn",
      parallelDisks: 4,
      sample: 0,
      domains: [
        {
          name: "web01",
          qmp: "/run/web01.qmp",
          disks: [{ target: "vda", file: "/etc/images/web01.qcow2", format: "qcow2" }],
        },
      ],
      concurrency: { domains: 2 },
      jobs: [],
      repositories: [{ name: "default", path: "/etc/fleece/backups", reserve: 0, compression: "none" }],
    });
  });

  it("takes a key from a file, whose path it resolves, or from a command, and not both or none", () => {
    const withKey = (keys: string): string =>
      LEAST.replace("path: backups }", `path: backups, encryption: ${keys} }`);
    const found = (keys: string): unknown => parseConfig(withKey(keys), "/etc/fleece/c.yaml").repositories[0];
    expect(found("{ keyFile: k }")).toMatchObject({ encryption: { keyFile: "/etc/fleece/k" } });
    expect(found("{ keyCommand: [vault, x] }")).toMatchObject({ encryption: { keyCommand: ["vault", "x"] } });
    for (const keys of [
      "{}",
      "{ keyFile: k, keyCommand: [cat] }",
      "{ keyCommand: [] }",
      "{ keyCommand: [./x] }",
    ]) {
      expect(() => found(keys)).toThrow("encryption");
    }
    expect(() => found("{ keyFile: k }, compression: zstd")).toThrow("compression");
  });

  it("resolves the runtime directory and a relative QMP socket too", () => {
    const text = `${LEAST.replace("/run/web01.qmp", "vm/web01.qmp")}runtimeDir: run\n`;
    expect(parseConfig(text, "/etc/fleece/c.yaml")).toMatchObject({
      runtimeDir: "/etc/fleece/run",
      domains: [{ qmp: "/etc/fleece/vm/web01.qmp" }],
    });
  });

  it("knows how a domain is quiesced: with defaults, or as it says", () => {
    const settings = (more: string) => {
      const text = LEAST.replace("    disks:", `    guestAgent: web01.qga\n${more}    disks:`);
      const [domain] = parseConfig(text, "/etc/fleece/c.yaml").domains;
      return domain === undefined ? undefined : [domain.guestAgent, quiesceSettings(domain)];
    };
    const defaults = { byDefault: false, timeoutMs: 10_000, onFailure: "continue" };
    const path = "/etc/fleece/web01.qga";
    expect(settings("")).toEqual([path, defaults]);
    expect(settings("    quiesce: {}\n")).toEqual([path, defaults]);
    const given = "    quiesce: { always: true, timeout: 1.5m, onFailure: stop }\n";
    expect(settings(given)).toEqual([path, { byDefault: true, timeoutMs: 90_000, onFailure: "stop" }]);
  });

  it.each([
    [
      "    disks:",
      "    guestAgent: a\n    quiesce: { timeout: 10 }\n    disks:",
      "7:16: domains.0.quiesce.timeout: ",
    ],
    [
      "    disks:",
      "    guestAgent: a\n    quiesce: { timeout: 11m }\n    disks:",
      "7:16: domains.0.quiesce.timeout: Expected a number of seconds or minutes",
    ],
    [
      "    disks:",
      "    quiesce: { always: true }\n    disks:",
      "6:5: domains.0.quiesce: Expected `guestAgent`",
    ],
    ["qmp: /run/web01.qmp", "guestAgent: a", "5:5: domains.0.guestAgent: Expected `qmp` beside"],
    ["stateDir: ./state", "stateDir: 7", "1:1: stateDir: "],
    ["stateDir: ./state", 'stateDir: ""', "1:1: stateDir: Expected a path, got an empty string"],
    ["stateDir: ./state", 'stateDir: "a\\0b"', "1:1: stateDir: Expected a path without NUL"],
    ["scratchDir: scratch", "scratchDirectory: scratch", "2:1: scratchDirectory: Unknown key"],
    ["  - name: web01", "  - name: a/b", "4:5: domains.0.name: Expected a domain name"],
    ["target: vda,", "target: -x,", "7:11: domains.0.disks.0.target: Expected a disk name"],
    ["format: qcow2", "format: qed", "7:53: domains.0.disks.0.format: "],
    [", format: qcow2", "", "7:9: domains.0.disks.0.format: "],
    ["format: qcow2", "format: qcow2, size: 1", "7:68: domains.0.disks.0.size: Unknown key"],
    ["{ name: default,", "{ name: '',", "9:7: repositories.0.name: Expected a repository name"],
    ["path: backups", "path: [backups]", "9:22: repositories.0.path: "],
    ["path: backups }", "path: backups }\nparallelDisks: 0", "10:1: parallelDisks: "],
    ["path: backups }", "path: backups }\nparallelDisks: 1.5", "10:1: parallelDisks: "],
    ["path: backups }", "path: backups }\nlogLevel: loud", "10:1: logLevel: "],
    ["path: backups }", "path: backups }\nrepositories: []", "10:1: "],
  ])("says where %j became %j and what is wrong", (old, changed, expected) => {
    expect(LEAST).toContain(old);
    const problems = problemsOf(LEAST.replace(old, changed));
    expect(
      problems.some((problem) => problem.startsWith(`/etc/fleece/c.yaml:${expected}`)),
      problems.join("\n"),
    ).toBe(true);
  });

  it("reads a job in a few lines", () => {
    const job =
      'jobs: [{ name: nightly, schedule: "30 2 * * *", timeZone: Europe/Berlin, domains: all, notAfter: 06:00, jitter: 10m }]';
    const config = parseConfig(`${LEAST}${job}\nconcurrency: { domains: 3 }\n`, "/c.yaml");
    expect(configuredJobs(config)).toEqual([
      {
        name: "nightly",
        kind: "backup",
        schedule: new Schedule("30 2 * * *", "Europe/Berlin"),
        domains: ["web01"],
        repository: "default",
        level: undefined,
        quiesce: undefined,
        notAfter: "06:00",
        jitterMs: 600_000,
        retries: 3,
        catchUp: true,
        hooks: [],
      },
    ]);
    expect(jobLimits(config)).toEqual({ domains: 3, repositories: new Map() });
    const two = LEAST.replace("path: backups }", "path: backups, concurrency: 1 }");
    expect(jobLimits(parseConfig(two, "/c.yaml"))).toEqual({
      domains: 2,
      repositories: new Map([["default", 1]]),
    });
  });

  it("reads what a job verifies, runs and reports", () => {
    const job =
      'jobs: [{ name: nightly, schedule: "30 2 * * *", domains: all, verify: { budget: 30m }, ' +
      "hooks: [{ when: before, command: [/bin/true], onFailure: stop }], " +
      "report: { webhook: 'https://host/x', mail: { to: [a@b], from: c@d } } }]";
    const config = parseConfig(`${LEAST}${job}\nsample: 0.1%\n`, "/c.yaml");
    expect(config.sample).toBe(0.001);
    expect(configuredJobs(config)).toMatchObject([
      {
        verify: { after: true, budgetMs: 1_800_000 },
        hooks: [{ when: "before", command: ["/bin/true"], timeoutMs: 300_000, onFailure: "stop" }],
        report: {
          webhook: "https://host/x",
          mail: { command: ["/usr/sbin/sendmail", "-t", "-i"], to: ["a@b"], from: "c@d", on: "failure" },
        },
      },
    ]);
  });

  it("reads a job that verifies", () => {
    const job =
      'jobs: [{ name: proof, kind: verify, schedule: "0 12 * * 6", domains: all, verify: { budget: 4h } }]';
    expect(configuredJobs(parseConfig(`${LEAST}${job}\n`, "/c.yaml"))).toMatchObject([
      { kind: "verify", domains: ["web01"], verify: { budgetMs: 14_400_000 } },
    ]);
  });

  it.each([
    ["kind: verify", "jobs.0.verify: Expected a `budget` of a job that verifies"],
    ["kind: verify, verify: { after: true }", "jobs.0.verify: Expected a `budget`"],
    ["kind: verify, level: full, verify: { budget: 1h }", "jobs.0.level: Expected none"],
    ["kind: verify, quiesce: true, verify: { budget: 1h }", "jobs.0.quiesce: Expected none"],
    ["kind: verify, limits: { read: 1M }, verify: { budget: 1h }", "jobs.0.limits: Expected none"],
    ["kind: verify, bootTest: {}, verify: { budget: 1h }", "jobs.0.bootTest: Expected none"],
    ["hooks: [{ when: before, command: [] }]", "Expected a program and its arguments"],
    ["report: { webhook: 'ftp://host/' }", "Expected an address like https://host/path"],
    ["report: { webhook: 'https://a:b@host/' }", "without a user name"],
    ['report: { mail: { to: ["a@b\\nBcc: x"], from: c@d } }', "Expected a mail address"],
  ])("refuses %s for a job", (keys, message) => {
    const job = `jobs: [{ name: nightly, schedule: "30 2 * * *", domains: all, ${keys} }]`;
    expect(() => parseConfig(`${LEAST}${job}\n`, "/c.yaml")).toThrow(message);
  });

  it.each(["0.1", "101%", "-1%", "1e1%"])("refuses %s as a share", (share) => {
    expect(() => parseConfig(`${LEAST}sample: ${share}\n`, "/c.yaml")).toThrow("share");
  });

  it.each([
    [
      'schedule: "30 25 * * *"',
      'jobs.0.schedule: Expected a cron expression like "30 2 * * *", got "30 25 * * *": hour',
    ],
    ["schedule: 5", "jobs.0.schedule: "],
    ["timeZone: Mars", 'jobs.0.timeZone: Expected a time zone like Europe/Berlin or UTC, got "Mars"'],
    ["domains: [web02]", "jobs.0.domains: Expected names of `domains`, or all; there is no web02"],
    ["domains: []", "jobs.0.domains: "],
    ["repository: tape", "jobs.0.repository: Expected a name of `repositories`, there is no tape"],
    ["notAfter: 6:00", 'jobs.0.notAfter: Expected a time of day from "00:00" to "23:59"'],
    ["jitter: 13h", 'jobs.0.jitter: Expected a duration like 90s, 10m or 1h, at most 12h, got "13h"'],
    ["retries: -1", "jobs.0.retries: "],
    ["level: most", "jobs.0.level: "],
    ["name: a/b", "jobs.0.name: Expected a job name"],
  ])("refuses %s for a job", (setting, problem) => {
    const keys = { name: "name: a", schedule: "schedule: '@daily'", domains: "domains: all" };
    const [key = ""] = setting.split(":");
    const job = Object.values({ ...keys, [key]: setting }).join(", ");
    const [found, ...more] = problemsOf(`${LEAST}jobs: [{ ${job} }]\n`);
    expect(more).toEqual([]);
    expect(found).toContain(`/etc/fleece/c.yaml:10:`);
    expect(found).toContain(problem);
  });

  it("refuses two jobs of one name", () => {
    const job = "{ name: a, schedule: '@daily', domains: all }";
    expect(problemsOf(`${LEAST}jobs: [${job}, ${job}]\n`)).toEqual([
      expect.stringContaining("jobs.1.name: "),
    ]);
  });

  it("names a required key that is missing, where its parent stands", () => {
    expect(problemsOf(LEAST.replace("scratchDir: scratch\n", ""))).toEqual([
      expect.stringMatching(/^\/etc\/fleece\/c\.yaml:1:1: scratchDir: /),
    ]);
  });

  it("reports all problems at once", () => {
    const text = LEAST.replace("stateDir: ./state", "stateDir: 7").replace("format: qcow2", "format: qed");
    expect(problemsOf(text).length).toBe(2);
  });

  it.each([
    ["domains", "  - { name: web01, qmp: /other }\n", "domains.1.name"],
    ["repositories", "", "repositories.1.name"],
  ])("refuses two %s of one name", (list, addition, key) => {
    const text =
      list === "domains"
        ? LEAST.replace("repositories:", `${addition}repositories:`)
        : `${LEAST}  - { name: default, path: other }\n`;
    expect(problemsOf(text)).toEqual([
      expect.stringMatching(new RegExp(`^/etc/fleece/c.yaml:\\d+:\\d+: ${key}: Expected different names`)),
    ]);
  });

  it("refuses two disks of one target in a domain, and allows them in two domains", () => {
    const twice = LEAST.replace(
      "repositories:",
      "      - { target: vda, file: b, format: raw }\nrepositories:",
    );
    expect(problemsOf(twice)).toEqual([
      expect.stringMatching(
        /:8:11: domains\.0\.disks\.1\.target: Expected different names, got "vda" twice$/,
      ),
    ]);
    const apart = LEAST.replace(
      "repositories:",
      "  - name: b\n    disks: [{ target: vda, file: b, format: raw }]\nrepositories:",
    );
    expect(problemsOf(apart)).toEqual([]);
  });

  it("refuses a domain that could never be reached", () => {
    const text = LEAST.replace("repositories:", "  - name: lost\nrepositories:");
    expect(problemsOf(text)).toEqual([
      expect.stringMatching(/^\/etc\/fleece\/c\.yaml:8:\d+: domains\.1: Expected `qmp`/),
    ]);
  });

  it.each(["", "# nothing\n", "[]", "just words", "domains: [\n", "a: 1\na: 2\n", "\tx: 1\n"])(
    "refuses %j with a place in the file",
    (text) => {
      const problems = problemsOf(text);
      expect(problems.length).toBeGreaterThan(0);
      for (const problem of problems) expect(problem).toMatch(/^\/etc\/fleece\/c\.yaml:\d+:\d+: ./);
    },
  );
});

describe("A domain's launch entry", () => {
  const at = (launch: string): string => LEAST.replace("    disks:", `    launch: ${launch}\n    disks:`);

  it("is the argument list as it stands", () => {
    const [domain] = parseConfig(at("[qemu, -m, '64']"), "/etc/f.yaml").domains;
    expect(domain?.launch).toEqual(["qemu", "-m", "64"]);
  });

  it("needs a monitor, and a program", () => {
    expect(() => parseConfig(at("[qemu]").replace(/ +qmp: .*\n/, ""), "/etc/f.yaml")).toThrow(
      /launch: Expected `qmp` beside `launch`/,
    );
    expect(() => parseConfig(at("[]"), "/etc/f.yaml")).toThrow(/launch/);
  });
});

describe("A domain's bootTest entry", () => {
  const parsed = (keys: string): ReturnType<typeof bootSettings> | undefined => {
    const [domain] = parseConfig(LEAST.replace("    disks:", `${keys}    disks:`), "/etc/f.yaml").domains;
    return domain && bootSettings(domain);
  };

  it("has a sign of life without being asked, and another one if it is", () => {
    const sign = { kind: "console", words: "login:" };
    expect(parsed("")).toMatchObject({ sign, timeoutMs: 300_000, accelerator: "auto" });
    const given =
      "    bootTest: { launch: [q, -x], memory: 1G, guestAgent: true, timeout: 90s, accelerator: tcg }\n";
    expect(parsed(given)).toMatchObject({
      ...{ launch: ["q", "-x"], memoryBytes: 2 ** 30, timeoutMs: 90_000, accelerator: "tcg" },
      sign: { kind: "guest-agent" },
    });
  });

  it.each([
    ["{ console: x, guestAgent: true }", /bootTest.console: Expected either `console` or `guestAgent: true`/],
    ["{ console: /(/ }", /bootTest.console: Expected a text, or a regular expression between slashes/],
    ["{ timeout: 13h }", /bootTest.timeout: Expected a duration like 90s/],
    ["{ memory: 1K }", /bootTest.memory: Expected at least 1 MiB/],
  ])("refuses %s", (entry, words) => {
    expect(() => parsed(`    bootTest: ${entry}\n`)).toThrow(words);
  });
});
