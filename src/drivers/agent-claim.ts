import { lstat, rm } from "node:fs/promises";
import { connect } from "node:net";
import { dirname, join } from "node:path";
import { errnoOf, fileError, FleeceError } from "../shared/errors.js";
import { describeHolder, tryKernelLock } from "./kernel-lock.js";
import { makeRuntimeRoot } from "./runtime-directory.js";
import { makePrivateDirectory } from "./state-directory.js";

export interface AgentPlace {
  readonly stateDir: string;
  readonly runtimeRoot: string;
  readonly socketPath: string;
}

/**
 * Makes this process the agent of a state directory, until it ends or lets go, and its socket's path free to bind: a socket
 * that a killed agent left is removed. Fails with AGENT_RUNNING if there is another agent, or if anybody answers there.
 */
export async function claimAgentPlace({
  stateDir,
  runtimeRoot,
  socketPath,
}: AgentPlace): Promise<AsyncDisposable> {
  await makePrivateDirectory(stateDir);
  const attempt = await tryKernelLock(join(stateDir, "agent.lock"), "fleece serve");
  if (!attempt.held) {
    const { holder } = attempt;
    throw new FleeceError(
      "AGENT_RUNNING",
      `An agent runs already on ${stateDir}: ${describeHolder(holder)}`,
      {
        facts: { stateDir, ...(holder === undefined ? {} : { pid: holder.pid }) },
      },
    );
  }
  const { lock } = attempt;
  try {
    if (dirname(socketPath) === runtimeRoot) await makeRuntimeRoot(runtimeRoot);
    await removeStaleSocket(socketPath);
  } catch (error) {
    await lock.release();
    throw error;
  }
  return { [Symbol.asyncDispose]: () => lock.release() };
}

/**
 * Makes the path free to bind. Fails with ALREADY_EXISTS if something else is there, with AGENT_RUNNING if somebody answers.
 */
export async function removeStaleSocket(path: string): Promise<void> {
  try {
    const found = await lstat(path);
    if (!found.isSocket()) {
      throw new FleeceError("ALREADY_EXISTS", `Cannot make the socket ${path}: something else is there`, {
        facts: { path },
      });
    }
    if (await isAnswered(path)) {
      throw new FleeceError("AGENT_RUNNING", `Another process answers on the socket ${path}`, {
        facts: { path },
      });
    }
    await rm(path);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw fileError(error, "make the socket", path);
    await checkDirectory(dirname(path));
  }
}

async function checkDirectory(path: string): Promise<void> {
  try {
    await lstat(path);
  } catch (error) {
    throw fileError(error, "make the socket in", path);
  }
}

/** The kernel refuses at once where nobody listens; any other answer comes from somebody. */
function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", (error) => resolve(errnoOf(error) !== "ECONNREFUSED"));
  });
}
