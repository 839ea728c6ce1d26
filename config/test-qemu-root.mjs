/**
 * Runs tests with QEMU, nbdkit and libnbd of another distribution, unpacked under a directory:
 * `FLEECE_QEMU_ROOT=/path/to/root node config/test-qemu-root.mjs [ARGUMENTS FOR VITEST]`.
 * The programs run in that root by `chroot`, so they find their own libraries, modules and firmware; the directories that tests
 * share with them are mounted into it, in a mount namespace of this run that ends with it. That takes root.
 */
import { spawnSync } from "node:child_process";
import { lstatSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** A process of this run sees it once it is in the mount namespace. */
const insideVariable = "FLEECE_QEMU_ROOT_MOUNTED";
const tools = [
  ...["qemu-system-x86_64", "qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"],
  ...["nbdkit", "nbdcopy", "nbdinfo", "nbd-server"],
];
/** The other root has its own of these; of all else it sees what the tests see. */
const ownFolders = /^(bin|boot|etc|lib(32|64|x32)?|lost\+found|sbin|usr|var)$/;
const searchPath = "/usr/sbin:/usr/bin:/sbin:/bin";

/** Ends the run with a reason for the user, without a stack trace. */
class RunProblem extends Error {}

function main(args) {
  const given = process.env["FLEECE_QEMU_ROOT"] ?? "";
  if (given === "") {
    throw new RunProblem("Expected FLEECE_QEMU_ROOT to name a directory with another distribution's QEMU");
  }
  // npm runs scripts in the project's directory; a relative path means the caller's.
  const root = resolve(process.env["INIT_CWD"] ?? "", given);
  if (!hasTool(root, "qemu-system-x86_64")) {
    throw new RunProblem(`Expected ${root} to have usr/bin/qemu-system-x86_64, it does not`);
  }
  if (process.getuid?.() !== 0) throw new RunProblem("Expected to run as root: chroot and mount need it");
  return process.env[insideVariable] === root ? runInside(root, args) : enterNamespace(root, args);
}

/** Mounts of this run are nobody else's, and need no cleaning. */
function enterNamespace(root, args) {
  const self = [process.execPath, fileURLToPath(import.meta.url), ...args];
  const env = { ...process.env, [insideVariable]: root };
  return statusOf("unshare", ["--mount", "--propagation", "private", "--", ...self], { env });
}

function runInside(root, args) {
  mountInto(root);
  const folder = mkdtempSync(join(tmpdir(), "fl-root-"));
  try {
    const found = tools.filter((tool) => writeWrapper(root, folder, tool));
    process.stdout.write(`From ${root}: ${found.join(", ")}\n`);
    const { [insideVariable]: _, ...others } = process.env;
    const env = { ...others, PATH: `${folder}${delimiter}${process.env["PATH"] ?? searchPath}` };
    const runTests = fileURLToPath(new URL("run-tests.mjs", import.meta.url));
    run("qemu-system-x86_64", ["--version"], { env });
    return statusOf(process.execPath, [runTests, ...args], { env });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function mountInto(root) {
  // What a test mounts later is then seen in both places.
  run("mount", ["--make-rshared", "/"]);
  for (const name of readdirSync("/")) {
    if (ownFolders.test(name) || !isDirectory(`/${name}`)) continue;
    const target = join(root, name);
    mkdirSync(target, { recursive: true });
    run("mount", ["--rbind", `/${name}`, target]);
  }
}

function isDirectory(path) {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}

/** `exec` all the way: the process that a test starts and kills is the program itself. */
function writeWrapper(root, folder, tool) {
  if (!hasTool(root, tool)) return false;
  const inRoot = `cd "$0" && PATH=${searchPath} && exec "$@"`;
  const lines = [
    "#!/bin/sh",
    `PATH="$PATH:${searchPath}" exec chroot ${quote(root)} /bin/sh -c ${quote(inRoot)} "$PWD" ${tool} "$@"`,
  ];
  writeFileSync(join(folder, tool), `${lines.join("\n")}\n`, { mode: 0o755 });
  return true;
}

/** A link of the other root may lead nowhere in ours. */
function hasTool(root, tool) {
  const paths = ["usr/bin", "usr/sbin"].map((place) => join(root, place, tool));
  return paths.some((path) => lstatSync(path, { throwIfNoEntry: false }) !== undefined);
}

function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function run(command, args, options = {}) {
  const status = statusOf(command, args, options);
  if (status !== 0) throw new RunProblem(`Failed: ${command} ${args.join(" ")}`);
}

function statusOf(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", ...options });
  if (error !== undefined) throw new RunProblem(`${command}: ${error.message}`);
  return status ?? 1;
}

try {
  process.exitCode = main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof RunProblem)) throw error;
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
}
