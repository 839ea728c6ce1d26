import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import type { JobReport } from "../../../src/model/job.js";
import { runMail } from "../../../src/model/run-mail.js";
import type { RunRecord } from "../../../src/model/run-record.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { type JobProcess, JobWorld, nightly, until } from "../../support/job-world.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const servers: Server[] = [];
afterEach(() => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
});

interface Receiver {
  readonly url: string;
  readonly bodies: string[];
  readonly types: (string | undefined)[];
}

/** Answers with these, one after the other, and then with 204; with 0 it does not answer. */
async function receiver(...answers: number[]): Promise<Receiver> {
  const bodies: string[] = [];
  const types: (string | undefined)[] = [];
  const server = createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8").on("data", (text: string) => (body += text));
    request.on("end", () => {
      bodies.push(body);
      types.push(request.headers["content-type"]);
      const status = answers.shift() ?? 204;
      if (status !== 0) response.writeHead(status, { location: "/elsewhere" }).end();
    });
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/secret`, bodies, types };
}

async function begin(
  report: Partial<JobReport>,
  { fails = false } = {},
): Promise<{ at: JobWorld; agent: JobProcess; path: string; ended: Promise<RunRecord> }> {
  const { path } = await temporaryDirectory();
  const at = new JobWorld(path, "2026-11-15T01:29:00Z");
  if (fails) {
    at.domain().gate = () => {
      throw new FleeceError("PERMISSION_DENIED", "Made to fail");
    };
  }
  const mail = report.mail && {
    ...report.mail,
    command: report.mail.command.map((word) => word.replace("@", path)),
  };
  const job = nightly({ report: { webhook: undefined, ...report, mail } });
  const agent = at.process([job]);
  const { ended } = await agent.runner.start(agent.context, { job, trigger: "request", retries: 0 });
  return { at, agent, path, ended };
}

/** It waits for its next try; each try waits 10 s for an answer. */
function pausesFor({ clock }: JobWorld, ms: number, tens: number): boolean {
  return clock.pausesMs.at(-1) === ms && clock.pausesMs.filter((each) => each === 10_000).length === tens;
}

describe("the webhook of a job", () => {
  it("gets the record of each run, as the command line prints it", async () => {
    const { url, bodies, types } = await receiver();
    const { ended } = await begin({ webhook: url });
    const record = await ended;
    expect(record.notes).toBeUndefined();
    expect(types).toEqual(["application/json"]);
    expect(JSON.parse(bodies[0] ?? "")).toMatchObject({
      id: record.id,
      job: "nightly",
      state: "COMPLETE",
      domains: [{ domain: "web01", backup: { disks: [{ readBytes: "65536" }] } }],
    });
  });

  it("is told twice more when it fails, and then no more", async () => {
    const { url, bodies } = await receiver(500, 503);
    const { at, ended } = await begin({ webhook: url });
    await until(() => pausesFor(at, 1000, 1));
    await at.clock.advance(1000);
    await until(() => pausesFor(at, 10_000, 3));
    await at.clock.advance(10_000);
    expect(await ended).toMatchObject({ state: "complete" });
    expect(bodies).toHaveLength(3);
    expect(new Set(bodies).size).toBe(1);
  });

  it("that takes nothing leaves a note without its path, and the run as it was", async () => {
    const { url, bodies } = await receiver(500, 302, 0);
    const { at, agent, ended } = await begin({ webhook: url });
    await until(() => pausesFor(at, 1000, 1));
    await at.clock.advance(1000);
    await until(() => pausesFor(at, 10_000, 3));
    await at.clock.advance(10_000);
    await until(() => bodies.length === 3);
    await at.clock.advance(10_000);
    const { host } = new URL(url);
    const notes = [`the webhook at ${host} was not told of the run: it did not answer in time`];
    expect(await ended).toMatchObject({ state: "complete", notes });
    expect(await agent.records()).toMatchObject([{ state: "complete", notes }]);
    expect(at.log).toContain(notes[0]);
  });

  it("is told once alone of a run that was cancelled", async () => {
    const { url, bodies } = await receiver(500);
    const { path } = await temporaryDirectory();
    const at = new JobWorld(path, "2026-11-15T01:29:00Z");
    const command = ["/bin/sleep", "600"];
    const hooks = [{ when: "before", command, timeoutMs: 60_000, onFailure: "stop" }] as const;
    const job = nightly({ hooks, report: { webhook: url, mail: undefined } });
    const agent = at.process([job]);
    await agent.runner.start(agent.context, { job, trigger: "request", retries: 0 });
    const cancelled = await agent.runner.cancel("nightly", "somebody");
    expect(cancelled).toMatchObject({ state: "interrupted", notes: [expect.stringContaining("status 500")] });
    expect(bodies).toHaveLength(1);
  });
});

describe("the reports of a run whose agent was killed", () => {
  it("go out when the next agent starts, once, and do not hold up its jobs", async () => {
    const { url, bodies } = await receiver(500);
    const { path } = await temporaryDirectory();
    const at = new JobWorld(path, "2026-11-15T01:29:00Z");
    const job = nightly({ report: { webhook: url, mail: undefined } });
    const first = await at.process([job]).schedule();
    let isHeld = false;
    at.domain().gate = (point) => {
      if (!point.startsWith("open: after")) return undefined;
      isHeld = true;
      return new Promise(() => undefined);
    };
    await first.pass(60_000);
    await until(() => isHeld);
    await first.die();
    expect(bodies).toEqual([]);

    at.domain().gate = () => undefined;
    await at.clock.advance(1000);
    const second = await at.process([job]).schedule();
    // One of the two reports is not taken at first: it pauses.
    await until(async () => (await second.records()).length === 2 && at.clock.pausesMs.includes(1000));
    await second.idle();
    const [again, cut] = await second.records();
    expect(again).toMatchObject({ trigger: "catch-up", state: "complete" });
    await at.clock.advance(1000);
    await until(() => bodies.length === 3);
    const told = bodies.map((body) => JSON.parse(body) as { id: string; state: string });
    expect(new Set(told.map(({ id, state }) => `${id} ${state}`))).toEqual(
      new Set([`${cut?.id ?? ""} INTERRUPTED`, `${again?.id ?? ""} COMPLETE`]),
    );
    await until(async () => (await second.records()).every(({ reportDue }) => reportDue === undefined));
    await second.die();
    await (await at.process([job]).schedule()).die();
    expect(bodies).toHaveLength(3);
  });
});

describe("the report of a run that had ended when its agent was killed", () => {
  /** The agent is killed while the webhook has not answered. */
  async function killedAmidReport(): Promise<{
    at: JobWorld;
    next: JobProcess;
    bodies: readonly string[];
  }> {
    const { url, bodies } = await receiver(0);
    const { path } = await temporaryDirectory();
    const at = new JobWorld(path, "2026-11-15T01:29:00Z");
    const job = nightly({ report: { webhook: url, mail: undefined } });
    const first = at.process([job]);
    await first.runner.start(first.context, { job, trigger: "request", retries: 0 });
    await until(() => bodies.length === 1);
    await first.die();
    return { at, next: at.process([job]), bodies };
  }

  it("goes out when the next agent starts, and no more after that", async () => {
    const { next, at, bodies } = await killedAmidReport();
    await next.schedule();
    await until(async () => bodies.length === 2 && (await next.records())[0]?.reportDue === undefined);
    expect(bodies[1]).toBe(bodies[0]);
    await next.die();
    await (await at.process(next.context.jobs.list).schedule()).die();
    expect(bodies).toHaveLength(2);
  });

  it("stays due when that agent ends too before it was taken", async () => {
    const { url, bodies } = await receiver(0, 0);
    const { at, next } = await killedAmidReport();
    const job = nightly({ report: { webhook: url, mail: undefined } });
    await next.reload([job]);
    await until(() => bodies.length === 1);
    // As a reload does, too.
    await next.die();
    expect(await next.records()).toMatchObject([{ state: "complete", reportDue: true }]);
    const third = await at.process([job]).schedule();
    await until(() => bodies.length === 2);
    await third.die();
    expect(bodies[1]).toBe(bodies[0]);
  });

  it("is left out when it is older than a week", async () => {
    const { at, next, bodies } = await killedAmidReport();
    at.set("2026-11-22T01:30:00Z");
    await next.schedule();
    const [job = nightly()] = next.context.jobs.list;
    const { ended } = await next.runner.start(next.context, { job, trigger: "request", retries: 0 });
    const { id } = await ended;
    await next.die();
    expect(bodies.slice(1).map((body) => (JSON.parse(body) as { id: string }).id)).toEqual([id]);
  });
});

describe("the mail of a job", () => {
  const mail = {
    to: ["ops@example.org", "b@example.org"],
    from: "fleece@example.org",
    on: "failure",
  } as const;

  it("goes to the program's standard input when a run has failed", async () => {
    const { path, ended } = await begin(
      { mail: { ...mail, command: ["/usr/bin/tee", "@/mail"] } },
      { fails: true },
    );
    expect(await ended).toMatchObject({ state: "failed" });
    const text = await readFile(`${path}/mail`, "utf8");
    expect(text).toMatch(
      /^From: fleece@example.org\nTo: ops@example.org, b@example.org\nSubject: fleece: job nightly: failed\nDate: Sun, 15 Nov 2026 01:29:00 \+0000\n/,
    );
    expect(text).toContain("\n\nJob nightly, run ");
    expect(text).toContain("web01: failed, no backup\n  Made to fail (PERMISSION_DENIED)\n");
  });

  it("does not go when one has succeeded, unless it always does", async () => {
    const command = ["/bin/false"];
    expect((await (await begin({ mail: { ...mail, command } })).ended).notes).toBeUndefined();
    expect(await (await begin({ mail: { ...mail, command, on: "always" } })).ended).toMatchObject({
      state: "complete",
      notes: [
        "the mail to ops@example.org, b@example.org was not sent (/bin/false): it ended with exit code 1",
      ],
    });
  });

  it("goes also when a sample found a change that bitmaps had missed, though there is a backup then", async () => {
    const { path } = await temporaryDirectory();
    const at = new JobWorld(path, "2026-11-15T01:29:00Z");
    const command = ["/usr/bin/tee", `${path}/mail`];
    const job = nightly({ report: { webhook: undefined, mail: { ...mail, command } } });
    const { context, runner } = at.process([job]);
    const night = async (): Promise<RunRecord> => {
      await at.clock.advance(60_000);
      const order = { job, trigger: "request", retries: 0 } as const;
      return (await runner.start({ ...context, sampleShare: 1 }, order)).ended;
    };
    await night();
    expect(await night()).toMatchObject({ state: "complete" });
    await expect(readFile(`${path}/mail`)).rejects.toThrow("ENOENT");
    at.domain().disk("vda").content.fill(9, 65_536, 131_072);
    expect(await night()).toMatchObject({ state: "complete-with-notes", domains: [{ missedChange: true }] });
    expect(await readFile(`${path}/mail`, "utf8")).toContain("which its bitmaps had not recorded");
  });

  it("has no line that an error's words could add to its head or end it with, and none that is too long", async () => {
    const record = await (await begin({}, { fails: true })).ended;
    const message = `a\r\nBcc: x@example.org\n.\n${"é".repeat(2000)}`;
    const text = runMail({ ...record, error: { code: "INTERNAL", message } }, mail);
    const lines = text.split("\n");
    expect(lines.filter((line) => line.startsWith("Bcc") || line === "." || line.includes("\r"))).toEqual([]);
    expect(Math.max(...lines.map((line) => Buffer.byteLength(line)))).toBeLessThan(998);
  });
});
