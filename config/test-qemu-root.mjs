/**
 * Runs tests with QEMU, nbdkit and libnbd of another distribution, unpacked under a directory:
 * `FLEECE_QEMU_ROOT=/path/to/root node config/test-qemu-root.mjs [ARGUMENTS FOR VITEST]`.
 * The programs run in that root by `chroot`, so they find their own libraries, modules and firmware; the directories that tests
 * share with them are mounted into it, in a mount namespace of this run that ends with it. That takes root.
 */
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
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
  if (pathOf(root, "qemu-system-x86_64") === undefined) {
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
  // Tests start programs as other users, too.
  chmodSync(folder, 0o755);
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

/**
 * `exec` all the way: the process that a test starts and kills is the program itself. It keeps its name and all of its environment, `PATH` too,
 * so that whoever starts another like it, as a revert does, gets that from the other root as well. Who is not root may `chroot` in a
 * user namespace. Perl is part of every Debian, and a shell would add to the environment.
 */
function writeWrapper(root, folder, tool) {
  const path = pathOf(root, tool);
  if (path === undefined) return false;
  const lines = [
    "#!/usr/bin/perl",
    "my ($uid, $gid, $cwd) = ($>, $) + 0, readlink '/proc/self/cwd');",
    'sub map_id { open my $file, \'>\', "/proc/self/$_[0]" or die; print $file $_[1]; close $file or die "$_[0]: $!" }',
    // unshare(2) on x86-64, CLONE_NEWUSER.
    "if ($uid != 0) {",
    '  syscall(272, 0x10000000) == 0 or die "unshare: $!";',
    "  map_id('setgroups', 'deny'); map_id('uid_map', \"$uid $uid 1\"); map_id('gid_map', \"$gid $gid 1\");",
    "}",
    // A virtual machine's directory is compared; it stays what it is outside. Others ask for theirs, and so need one inside.
    `chroot ${quote(root)}${tool.startsWith("qemu-system") ? "" : " and chdir $cwd"} or die "chroot: $!";`,
    `exec { ${quote(path)} } ${quote(tool)}, @ARGV;`,
  ];
  writeFileSync(join(folder, tool), `${lines.join("\n")}\n`, { mode: 0o755 });
  return true;
}

/** A link of the other root may lead nowhere in ours. */
function pathOf(root, tool) {
  const paths = [`/usr/bin/${tool}`, `/usr/sbin/${tool}`];
  return paths.find((path) => lstatSync(join(root, path), { throwIfNoEntry: false }) !== undefined);
}

function quote(text) {
  return `'${text.replace(/['\\]/g, "\\$&")}'`;
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
