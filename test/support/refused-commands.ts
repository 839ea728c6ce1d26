import { AsyncLocalStorage } from "node:async_hooks";
import { Socket } from "node:net";

/** QMP commands that only ask. */
const QUESTION = /^(query-|qmp_capabilities$|qom-list|qom-get$|x-debug-query)/;

interface Fault {
  /** From 1; 0: none. */
  readonly at: number;
  readonly commands: string[];
}

const faults = new AsyncLocalStorage<Fault>();

/**
 * Runs `action`, and lets QEMU refuse the `at`-th of the commands by which it changes something in any QEMU or storage daemon: it
 * gets one in its place that fails, so that the answer is QEMU's own. 0: none. `commands` are those that came, `refused` the
 * one that was refused.
 */
export async function refusing<T>(
  at: number,
  action: () => Promise<T>,
): Promise<{
  readonly commands: readonly string[];
  readonly refused?: string;
  readonly outcome: PromiseSettledResult<T>;
}> {
  const fault: Fault = { at, commands: [] };
  const [outcome] = await faults.run(fault, () => Promise.allSettled([action()]));
  const refused = at === 0 ? undefined : fault.commands[at - 1];
  return { commands: fault.commands, ...(refused === undefined ? {} : { refused }), outcome };
}

const write = Reflect.get(Socket.prototype, "write") as (this: Socket, ...args: unknown[]) => boolean;

/** One command is one write. */
Socket.prototype.write = function (this: Socket, data: unknown, ...rest: unknown[]): boolean {
  const fault = faults.getStore();
  const text = typeof data === "string" || Buffer.isBuffer(data) ? data.toString() : "";
  const [, command, id] = /^\{"execute":"([^"]+)".*"id":("[^"]*")/.exec(text) ?? [];
  if (fault === undefined || command === undefined || QUESTION.test(command)) {
    return write.call(this, data, ...rest);
  }
  fault.commands.push(command);
  if (fault.commands.length !== fault.at) return write.call(this, data, ...rest);
  const refusal = `{"execute":"blockdev-del","arguments":{"node-name":"refused"},"id":${id ?? '""'}}\r\n`;
  return write.call(this, refusal, ...rest);
};
