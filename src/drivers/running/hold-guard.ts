import { type ChildProcess, spawn } from "node:child_process";
import { errorMessage, FleeceError } from "../../shared/errors.js";
import type { Reopening } from "../machine/stand-ins.js";

/**
 * What the guard undoes when we die: `stop` over QMP, a freeze through the guest agent, or the stop after its memory has been
 * saved, which QEMU does by itself. Before that it gives devices their images back; that alone is for a paused guest.
 */
export type GuardedState = "held" | "frozen" | "saving" | "stood-in";

export interface GuardOptions {
  readonly qmpSocketPath: string;
  /** Needed for `frozen`. */
  readonly agentSocketPath?: string | undefined;
  /** For `saving` and `stood-in`; see `takeBack`. */
  readonly reopenings?: readonly Reopening[] | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A Node process is up in 0.1 s; a host under load may need a while. */
const START_TIMEOUT_MS = 20_000;
/** Others may use the monitor first, and a guest may be slow; later somebody else may have paused the guest on purpose. */
const ACT_WITHIN_MS = 60_000;

/**
 * A small process that outlives us: if we die, also by SIGKILL, while the guest is stopped or frozen by us, it continues
 * and thaws the guest. Without it the guest would wait for our next command. It learns what we do from a pipe,
 * and our death from the end of that pipe; a monitor serves one client at a time, and ours is free once we are dead.
 */
export class HoldGuard implements AsyncDisposable {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  /** Resolves when the guard is on watch, so start it before the guest is touched. */
  static async start({ signal, ...options }: GuardOptions): Promise<HoldGuard> {
    const settings = JSON.stringify({ ...options, ACT_WITHIN_MS });
    // In a session of its own: what kills our process group must not take the guard along.
    const child = spawn(process.execPath, ["-e", GUARD_SOURCE, settings], {
      cwd: "/",
      detached: true,
      env: {},
      stdio: ["pipe", "pipe", "ignore"],
    });
    // It may be killed, too; then the next command puts the guest in order.
    child.stdin.on("error", () => undefined);
    const guard = new HoldGuard(child);
    try {
      await ready(child, signal);
      return guard;
    } catch (error) {
      await guard[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Call it before the guest is touched: the words are in the pipe then, whatever becomes of us. */
  begin(state: GuardedState): void {
    this.#child.stdin?.write(`+${state}\n`);
  }

  /** Call it when QEMU or the guest has confirmed that all is as before. */
  end(state: GuardedState): void {
    this.#child.stdin?.write(`-${state}\n`);
  }

  /** The guard ends, unless something has begun and not ended: then it acts as if we were dead. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin?.end();
    this.#child.stdout?.destroy();
    this.#child.unref();
    return Promise.resolve();
  }
}

async function ready(child: ChildProcess, signal: AbortSignal | undefined): Promise<void> {
  let stop = (): void => undefined;
  try {
    await new Promise<void>((resolve, reject) => {
      const fail = (why: string): void =>
        reject(new FleeceError("INTERNAL", `The process that guards the guest did not start: ${why}`));
      const timer = setTimeout(() => fail(`no word from it in ${START_TIMEOUT_MS} ms`), START_TIMEOUT_MS);
      const onAbort = (): void => reject(new FleeceError("INTERRUPTED", "Cancelled"));
      stop = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", onAbort);
      };
      signal?.addEventListener("abort", onAbort);
      child.on("error", (error) => fail(errorMessage(error)));
      child.once("exit", (code) => fail(`exit code ${String(code)}`));
      child.stdout?.once("data", () => resolve());
    });
  } finally {
    stop();
  }
}

/** A string rather than a file, since a file would have another name in sources, tests and a build. */
const GUARD_SOURCE = `
  const { randomInt } = require("node:crypto");
  const { createConnection } = require("node:net");
  const { qmpSocketPath, agentSocketPath, reopenings = [], ACT_WITHIN_MS } = JSON.parse(process.argv[1]);
  const ATTEMPT_MS = 5000;
  const RETRY_MS = 100;
  const MAX_LINE_CHARACTERS = 1 << 20;
  const states = new Set();

  let heard = "";
  process.stdin.setEncoding("utf8");
  process.stdin.on("data", (text) => {
    const lines = (heard + text).split("\\n");
    heard = lines.pop();
    for (const line of lines) {
      if (line[0] === "+") states.add(line.slice(1));
      else states.delete(line.slice(1));
    }
  });
  process.stdin.on("end", () => void act());
  process.stdin.on("error", () => void act());
  process.stdout.on("error", () => undefined);
  for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"]) process.on(signal, () => undefined);
  process.stdout.write("ready\\n");

  async function act() {
    const tasks = [];
    if (states.has("held")) tasks.push(insist(() => continueGuest(["paused"])));
    if (states.has("saving")) tasks.push(insist(() => continueGuest(["paused", "postmigrate"], true)));
    if (states.has("stood-in")) tasks.push(insist(() => continueGuest([], true)));
    // An agent answers only when its guest runs; the two do not wait for each other, since each may be stuck.
    if (states.has("frozen")) tasks.push(insist(thawGuest));
    await Promise.all(tasks);
    process.exit(0);
  }

  async function insist(attempt) {
    const start = performance.now();
    while (performance.now() - start < ACT_WITHIN_MS) {
      try {
        return await attempt();
      } catch (error) {
        // QEMU has ended, and the guest with it.
        if (error.code === "ENOENT" || error.code === "ECONNREFUSED") return;
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
  }

  // A saving ends by itself when nobody reads what is saved; only then is it known where the guest stands.
  async function continueGuest(stopped, afterSaving = false) {
    const peer = dial(qmpSocketPath);
    const prefix = "guard-" + randomInt(2 ** 47) + "-";
    let count = 0;
    const call = async (execute, args) => {
      const id = prefix + count++;
      peer.send({ execute, arguments: args, id });
      const { error, return: value } = await peer.next((message) => message.id === id);
      if (error) throw new Error(error.desc);
      return value;
    };
    try {
      await peer.next((message) => message.QMP !== undefined);
      await call("qmp_capabilities");
      const { status: migration = "none" } = afterSaving ? await call("query-migrate") : {};
      if (!["none", "completed", "failed", "cancelled"].includes(migration)) throw new Error(migration);
      const { status } = await call("query-status");
      if (afterSaving && status === "finish-migrate") throw new Error(status);
      if (afterSaving) for (const reopening of reopenings) await takeBack(call, reopening);
      if (stopped.includes(status)) await call("cont");
    } finally {
      peer.close();
    }
  }

  async function takeBack(call, { standIn, qomPath, iothread, layers }) {
    const devices = await call("query-block");
    if (!devices.some(({ inserted }) => inserted?.["node-name"] === standIn)) return;
    const nodes = await call("query-named-block-nodes", { flat: true });
    const names = new Set(nodes.map((node) => node["node-name"]));
    const open = layers.findLastIndex(({ node, nextNode }) => names.has(node) || names.has(nextNode));
    for (const { options, nextNode, bitmaps } of layers.slice(open + 1)) {
      await call("blockdev-add", options);
      names.add(nextNode);
      if (bitmaps.length > 0) await call("transaction", { actions: bitmaps });
    }
    const { node, nextNode } = layers.at(-1);
    const value = names.has(nextNode) ? nextNode : node;
    const give = () => call("qom-set", { path: qomPath, property: "drive", value });
    try {
      await give();
    } catch (error) {
      if (!iothread) throw error;
      await call("x-blockdev-set-iothread", { "node-name": value, iothread });
      await give();
    }
  }

  async function thawGuest() {
    const peer = dial(agentSocketPath);
    const call = async (execute) => {
      peer.send({ execute });
      const { error, return: value } = await peer.next(() => true);
      if (error) throw new Error(error.desc);
      return value;
    };
    try {
      const id = randomInt(2 ** 47);
      peer.send({ execute: "guest-sync-delimited", arguments: { id } }, "\\xff");
      await peer.next((message) => message.return === id);
      if ((await call("guest-fsfreeze-status")) === "thawed") return;
      await call("guest-fsfreeze-thaw");
      if ((await call("guest-fsfreeze-status")) !== "thawed") throw new Error("still frozen");
    } finally {
      peer.close();
    }
  }

  // One attempt's connection: lines of JSON, each after the last delimiter in it.
  function dial(path) {
    const socket = createConnection({ path });
    const messages = [];
    let rest = "";
    let failure;
    let wake = () => undefined;
    const timer = setTimeout(() => socket.destroy(new Error("no answer")), ATTEMPT_MS);
    socket.setEncoding("latin1");
    socket.on("data", (text) => {
      const lines = (rest + text).split("\\n");
      rest = lines.pop();
      if (rest.length > MAX_LINE_CHARACTERS) socket.destroy(new Error("too long"));
      for (const line of lines) messages.push(parse(line.slice(line.lastIndexOf("\\xff") + 1)));
      wake();
    });
    socket.on("error", (error) => { failure ??= error; });
    socket.on("close", () => { failure ??= new Error("closed"); wake(); });
    return {
      send: (message, before = "") => socket.write(before + JSON.stringify(message) + "\\n", "latin1"),
      next: async (accept) => {
        for (;;) {
          while (messages.length > 0) {
            const message = messages.shift();
            if (accept(message)) return message;
          }
          if (failure) throw failure;
          await new Promise((resolve) => { wake = resolve; });
        }
      },
      close: () => {
        clearTimeout(timer);
        socket.destroy();
      },
    };
  }

  function parse(text) {
    try {
      return Object(JSON.parse(text));
    } catch {
      return {};
    }
  }
`;
