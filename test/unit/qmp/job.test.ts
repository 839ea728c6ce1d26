import { describe, expect, it } from "vitest";
import type { JobInfo, JobStatus } from "../../../src/qmp/index.js";
import { type FakePeer, failureOf, fakeSession } from "./fake-server.js";

const create = {
  "job-id": "j",
  options: { driver: "file", filename: "/x", size: 1 },
} as const;

function job(status: JobStatus, facts: Partial<JobInfo> = {}): JobInfo {
  return { id: "j", type: "create", status, "current-progress": 0, "total-progress": 1, ...facts };
}

async function answerLooks(peer: FakePeer, ...looks: (JobInfo | undefined)[]): Promise<void> {
  for (const look of looks) await peer.answer("query-jobs", look === undefined ? [] : [look]);
}

describe("QmpSession.runJob", () => {
  it("looks again on the job's event, reports progress, dismisses and resolves with the last state", async () => {
    const { session, peer } = await fakeSession();
    const progress: JobStatus[] = [];
    const onProgress = ({ status }: JobInfo): unknown => progress.push(status);
    // An hour: only the event can end the wait between the looks.
    const done = session.runJob("blockdev-create", create, { onProgress, pollIntervalMs: 3_600_000 });
    await peer.answer("blockdev-create");
    await answerLooks(peer, job("running"));
    peer.sendEvent("JOB_STATUS_CHANGE", { id: "other", status: "concluded" });
    peer.sendEvent("JOB_STATUS_CHANGE", { id: "j", status: "concluded" });
    await answerLooks(peer, job("concluded"));
    expect((await peer.answer("job-dismiss")).arguments).toEqual({ id: "j" });
    expect(await done).toEqual(job("concluded"));
    expect(progress).toEqual(["running", "concluded"]);
  });

  it("does not miss an event that comes before the first look's answer", async () => {
    const { session, peer } = await fakeSession();
    const done = session.runJob("blockdev-create", create, { pollIntervalMs: 3_600_000 });
    await peer.answer("blockdev-create");
    const look = await peer.command();
    peer.sendEvent("JOB_STATUS_CHANGE", { id: "j", status: "concluded" });
    peer.send({ return: [job("running")], id: look.id });
    await answerLooks(peer, job("concluded"));
    await peer.answer("job-dismiss");
    await done;
  });

  it("finds the end without any event", async () => {
    const { session, peer } = await fakeSession();
    const done = session.runJob("blockdev-create", create, { pollIntervalMs: 1 });
    await peer.answer("blockdev-create");
    await answerLooks(peer, job("running"), job("running"), job("concluded"));
    await peer.answer("job-dismiss");
    await done;
  });

  it("keeps a backup from dismissing itself", async () => {
    const { session, peer } = await fakeSession();
    const args = { "job-id": "j", device: "a", target: "b", sync: "full" } as const;
    const done = session.runJob("blockdev-backup", args);
    const command = await peer.answer("blockdev-backup");
    expect(command.arguments).toEqual({ ...args, "auto-finalize": true, "auto-dismiss": false });
    await answerLooks(peer, job("concluded"));
    await peer.answer("job-dismiss");
    await done;
  });

  it("fails with the job's own error, after dismissing it", async () => {
    const { session, peer } = await fakeSession();
    const done = failureOf(session.runJob("blockdev-create", create));
    await peer.answer("blockdev-create");
    await answerLooks(peer, job("concluded", { error: "No space left on device" }));
    await peer.answer("job-dismiss");
    expect(await done).toMatchObject({
      code: "QMP_JOB_FAILED",
      jobId: "j",
      qemuText: "No space left on device",
    });
  });

  it("cancels on abort, follows the job to its end, dismisses it and then fails", async () => {
    const { session, peer } = await fakeSession();
    const controller = new AbortController();
    const { signal } = controller;
    const done = failureOf(session.runJob("blockdev-create", create, { signal, pollIntervalMs: 3_600_000 }));
    await peer.answer("blockdev-create");
    await answerLooks(peer, job("running"));
    controller.abort("enough");
    expect((await peer.answer("job-cancel")).arguments).toEqual({ id: "j" });
    await answerLooks(peer, job("aborting"));
    peer.sendEvent("JOB_STATUS_CHANGE", { id: "j", status: "concluded" });
    await answerLooks(peer, job("concluded", { error: "Operation canceled" }));
    await peer.answer("job-dismiss");
    expect(await done).toMatchObject({ code: "QMP_ABORTED", cause: "enough", jobId: "j" });
  });

  it("resolves if the job succeeded before the cancel arrived", async () => {
    const { session, peer } = await fakeSession();
    const controller = new AbortController();
    const done = session.runJob("blockdev-create", create, { signal: controller.signal });
    const start = await peer.command();
    controller.abort();
    peer.send({ return: {}, id: start.id });
    const cancel = await peer.command();
    peer.send({
      error: { class: "GenericError", desc: "cannot accept command verb 'cancel'" },
      id: cancel.id,
    });
    await answerLooks(peer, job("concluded"));
    await peer.answer("job-dismiss");
    expect(await done).toEqual(job("concluded"));
  });

  it("starts nothing if the signal has fired before", async () => {
    const { session, peer } = await fakeSession();
    const signal = AbortSignal.abort("enough");
    expect(await failureOf(session.runJob("blockdev-create", create, { signal }))).toMatchObject({
      code: "QMP_ABORTED",
    });
    const next = session.execute("cont");
    await peer.answer("cont");
    await next;
  });

  it("fails if somebody else dismissed the job", async () => {
    const { session, peer } = await fakeSession();
    const done = failureOf(session.runJob("blockdev-create", create));
    await peer.answer("blockdev-create");
    await answerLooks(peer, undefined);
    expect(await done).toMatchObject({ code: "QMP_JOB_LOST", jobId: "j" });
  });

  it("fails at once when the session ends between two looks", async () => {
    const { session, peer } = await fakeSession();
    const done = failureOf(session.runJob("blockdev-create", create, { pollIntervalMs: 3_600_000 }));
    await peer.answer("blockdev-create");
    await answerLooks(peer, job("running"));
    peer.socket.end();
    expect(await done).toMatchObject({ code: "QMP_DISCONNECTED" });
  });

  it("passes on that QEMU refused to start the job", async () => {
    const { session, peer } = await fakeSession();
    const done = failureOf(session.runJob("blockdev-create", create));
    const { id } = await peer.command();
    peer.send({ error: { class: "GenericError", desc: "Job ID 'j' already in use" }, id });
    expect(await done).toMatchObject({ code: "QMP_COMMAND_FAILED", qemuText: "Job ID 'j' already in use" });
  });
});
