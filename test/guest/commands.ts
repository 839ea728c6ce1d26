import { execFile } from "node:child_process";

/** mkfs and its kin live in sbin, which is not on every user's PATH. */
const env = { ...process.env, PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin`, LC_ALL: "C" };

/** Runs a command to its end and gives its standard output; a failure carries the error output. */
export async function runCommand(
  command: string,
  args: readonly string[],
  options: { cwd?: string } = {},
): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const settings = { ...options, env, encoding: "buffer" as const, maxBuffer: 1 << 28 };
    execFile(command, args, settings, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(new Error(`Failed: ${command} ${args.join(" ")}: ${stderr.toString()}`, { cause: error }));
    });
  });
}
