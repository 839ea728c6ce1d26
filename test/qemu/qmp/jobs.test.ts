import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import type { JobInfo, QmpSession } from "../../../src/qmp/index.js";
import { addQcow2, connectTo, failureOf, type PeerKind, type RunningPeer, startPeer } from "./processes.js";

const kinds: readonly PeerKind[] = ["qemu-system-x86_64", "qemu-storage-daemon"];
const megabyte = 1024 * 1024;

/** A source whose reads take `latencyMs` each, so that a job on it is still there when the test acts. */
async function addZeroes(session: QmpSession, name: string, sizeBytes: number, latencyMs = 0): Promise<void> {
  await session.execute("blockdev-add", {
    driver: "null-co",
    "node-name": name,
    size: sizeBytes,
    "read-zeroes": true,
    "latency-ns": latencyMs * 1_000_000,
  });
}

async function addRaw(
  peer: RunningPeer,
  session: QmpSession,
  name: string,
  sizeBytes: number,
): Promise<void> {
  const filename = peer.directory.file(name);
  execFileSync("truncate", ["-s", String(sizeBytes), filename]);
  await session.execute("blockdev-add", { driver: "file", filename, "node-name": name });
}

describe.each(kinds)("QmpSession.runJob with %s", (kind) => {
  it("copies a disk to its end and leaves no job behind", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    await addQcow2(peer, session, "disk", 8 * megabyte);
    await addRaw(peer, session, "copy", 8 * megabyte);
    const looks: JobInfo[] = [];
    const job = await session.runJob(
      "blockdev-backup",
      { "job-id": "backup", device: "disk", target: "copy", sync: "full" },
      { onProgress: (look) => looks.push(look) },
    );
    expect(job).toMatchObject({ id: "backup", type: "backup", status: "concluded" });
    expect(job["current-progress"]).toBe(job["total-progress"]);
    expect(looks.at(-1)).toEqual(job);
    expect(await session.execute("query-jobs")).toEqual([]);
  });

  it("fails with QEMU's text when an image is too large to be created", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    await addRaw(peer, session, "file", 0);
    const create = session.runJob("blockdev-create", {
      "job-id": "create",
      options: { driver: "qcow2", file: "file", size: 2 ** 52, "cluster-size": 512 },
    });
    expect(await failureOf(create)).toMatchObject({
      code: "QMP_JOB_FAILED",
      jobId: "create",
      qemuText: expect.stringMatching(/too large/i) as unknown,
    });
    expect(await session.execute("query-jobs")).toEqual([]);
  });

  it("fails with QEMU's text when the target has no space left", async () => {
    const blockdev = [
      "driver=blkdebug,node-name=target,image.driver=null-co,image.size=1048576",
      "inject-error.0.event=none,inject-error.0.errno=28",
    ].join(",");
    const session = await connectTo(await startPeer(kind, { blockdev }));
    await addZeroes(session, "source", megabyte);
    const args = { "job-id": "backup", device: "source", target: "target", sync: "full" } as const;
    expect(await failureOf(session.runJob("blockdev-backup", args))).toMatchObject({
      code: "QMP_JOB_FAILED",
      jobId: "backup",
      qemuText: "No space left on device",
    });
    expect(await session.execute("query-jobs")).toEqual([]);
  });

  it("cancels on abort, and the job is gone when it rejects", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    await addZeroes(session, "slow", 64 * megabyte, 50);
    await addRaw(peer, session, "copy", 64 * megabyte);
    const controller = new AbortController();
    const args = { "job-id": "backup", device: "slow", target: "copy", sync: "full", speed: 65_536 } as const;
    const running = session.runJob("blockdev-backup", args, {
      signal: controller.signal,
      onProgress: ({ status }) => {
        if (status === "running") controller.abort("enough");
      },
    });
    expect(await failureOf(running)).toMatchObject({ code: "QMP_ABORTED", cause: "enough", jobId: "backup" });
    expect(await session.execute("query-jobs")).toEqual([]);
  });

  it("is taken up again by another session after the first one has gone", async () => {
    const peer = await startPeer(kind);
    const first = await connectTo(peer);
    await addZeroes(first, "slow", megabyte, 20);
    await addRaw(peer, first, "copy", megabyte);
    const args = {
      "job-id": "backup",
      device: "slow",
      target: "copy",
      sync: "full",
      speed: megabyte,
    } as const;
    let abandoned: Promise<unknown> | undefined;
    await new Promise<void>((resolve) => {
      abandoned = failureOf(first.runJob("blockdev-backup", args, { onProgress: () => resolve() }));
      void abandoned.then(() => resolve());
    });
    await first.close();
    expect(await abandoned).toMatchObject({ code: "QMP_CLOSED" });
    const second = await connectTo(peer, { connectTimeoutMs: 60_000 });
    await second.execute("query-jobs");
    expect(await second.followJob("backup")).toMatchObject({ status: "concluded" });
    expect(await second.execute("query-jobs")).toEqual([]);
  });

  it("refuses a second job of the same id, and the first is not touched", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    await addZeroes(session, "slow", 64 * megabyte, 50);
    await addRaw(peer, session, "copy", 64 * megabyte);
    const controller = new AbortController();
    const args = { "job-id": "backup", device: "slow", target: "copy", sync: "full", speed: 65_536 } as const;
    const first = failureOf(session.runJob("blockdev-backup", args, { signal: controller.signal }));
    const options = { driver: "file", filename: peer.directory.file("x"), size: 0 } as const;
    const second = session.runJob("blockdev-create", { "job-id": "backup", options });
    expect(await failureOf(second)).toMatchObject({
      code: "QMP_COMMAND_FAILED",
      qemuText: "Job ID 'backup' already in use",
    });
    expect(await session.execute("query-jobs")).toMatchObject([{ id: "backup", status: "running" }]);
    controller.abort();
    expect(await first).toMatchObject({ code: "QMP_ABORTED" });
  });
});
