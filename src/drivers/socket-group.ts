import { chmod, chown } from "node:fs/promises";
import { execa } from "execa";
import { fileError, FleeceError } from "../shared/errors.js";

/** Lets a group use a socket. Fails with CONFIG_INVALID if there is none of that name, or with PERMISSION_DENIED. */
export async function openToGroup(socketPath: string, group: string): Promise<void> {
  const gid = await groupId(group);
  try {
    // In this order it is never open to another group.
    await chown(socketPath, -1, gid);
    await chmod(socketPath, 0o660);
  } catch (error) {
    throw fileError(error, `give group ${group} the socket`, socketPath);
  }
}

async function groupId(group: string): Promise<number> {
  if (/^\d+$/.test(group)) return Number(group);
  const { stdout, failed } = await execa("getent", ["group", "--", group], {
    stdin: "ignore",
    reject: false,
  });
  const [, , id] = stdout.split("\n")[0]?.split(":") ?? [];
  if (!failed && id !== undefined && /^\d+$/.test(id)) return Number(id);
  throw new FleeceError("CONFIG_INVALID", `api.socketGroup: Expected a group of this host, got ${group}`, {
    facts: { group },
  });
}
