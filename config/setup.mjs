/**
 * Brings a fresh clone to where the demo and the tests can run: `node config/setup.mjs demo|test`.
 * It stands before `npm ci`, so it uses nothing but Node. What is there already is left alone, without a word.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { accessSync, constants, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const oldestNode = [20, 19];

/** Which package brings which command, file or Python module; `test` tools are not needed for the demo. */
const tools = [
  { command: "qemu-system-x86_64", deb: "qemu-system-x86", rpm: "qemu-system-x86-core" },
  { command: "qemu-img", deb: "qemu-utils", rpm: "qemu-img" },
  { command: "qemu-io", deb: "qemu-utils", rpm: "qemu-img" },
  { command: "qemu-nbd", deb: "qemu-utils", rpm: "qemu-img" },
  // In Debian 12 it is in qemu-system-common, which qemu-system-x86 brings along.
  { command: "qemu-storage-daemon", deb: "qemu-system-x86", rpm: "qemu-img" },
  { command: "mkfs.ext4", deb: "e2fsprogs", rpm: "e2fsprogs" },
  { command: "setpriv", deb: "util-linux", rpm: "util-linux" },
  { command: "ionice", deb: "util-linux", rpm: "util-linux-core" },
  { command: "nbdkit", deb: "nbdkit", rpm: "nbdkit", purpose: "test" },
  { command: "nbdinfo", deb: "libnbd-bin", rpm: "libnbd", purpose: "test" },
  { command: "nbdcopy", deb: "libnbd-bin", rpm: "libnbd", purpose: "test" },
  { command: "openssl", deb: "openssl", rpm: "openssl", purpose: "test" },
  // The service's unit is checked, and systemd played, by these.
  { command: "systemd-analyze", deb: "systemd", rpm: "systemd", purpose: "test" },
  { command: "perl", deb: "perl-base", rpm: "perl-interpreter", purpose: "test" },
  // For the programs in proto/examples.
  { command: "protoc", deb: "protobuf-compiler", rpm: "protobuf-compiler", purpose: "test" },
  { command: "grpc_python_plugin", deb: "protobuf-compiler-grpc", rpm: "grpc-plugins", purpose: "test" },
  {
    file: "/usr/include/google/protobuf/any.proto",
    deb: "libprotobuf-dev",
    rpm: "protobuf-devel",
    purpose: "test",
  },
  { module: "grpc", deb: "python3-grpcio", rpm: "python3-grpcio", purpose: "test" },
  { module: "google.protobuf", deb: "python3-protobuf", rpm: "python3-protobuf", purpose: "test" },
  { module: "nbd", deb: "python3-libnbd", rpm: "python3-libnbd", purpose: "test" },
];

/** Ends the setup with a reason for the user, without a stack trace. */
class SetupProblem extends Error {}

function main(purpose) {
  if (purpose !== "demo" && purpose !== "test") {
    throw new SetupProblem("Expected one argument, demo or test: node config/setup.mjs demo");
  }
  checkNode();
  installTools(purpose);
  installModules();
  build();
}

function checkNode() {
  const [major, minor] = process.versions.node.split(".").map(Number);
  const [oldestMajor, oldestMinor] = oldestNode;
  if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return;
  throw new SetupProblem(`Expected Node ${oldestNode.join(".")} or newer, this is ${process.versions.node}`);
}

function installTools(purpose) {
  const missing = tools.filter((tool) => (tool.purpose ?? purpose) === purpose && !isThere(tool));
  if (missing.length === 0) return;
  const debs = [...new Set(missing.map((tool) => tool.deb))];
  const mayInstall = process.platform === "linux" && process.getuid?.() === 0 && isOnPath("apt-get");
  if (!mayInstall) throw new SetupProblem(installAdvice(missing, debs));
  say(`Installing ${debs.join(", ")} from the distribution`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  run("apt-get", ["update", "-q"], { env });
  run("apt-get", ["install", "-q", "-y", "--no-install-recommends", ...debs], { env });
  const still = missing.filter((tool) => !isThere(tool)).map(nameOf);
  if (still.length > 0) throw new SetupProblem(`Still missing after the installation: ${still.join(", ")}`);
}

function installAdvice(missing, debs) {
  const commands = missing.map(nameOf).join(", ");
  if (process.platform !== "linux") return `fleece runs on Linux only; missing here: ${commands}`;
  const line = installLine(missing, debs);
  if (line === undefined) return `Install these commands from your distribution, then try again: ${commands}`;
  return `Missing: ${commands}. Type this, then try again:\n  ${line}`;
}

function installLine(missing, debs) {
  if (isOnPath("apt-get")) {
    return `sudo apt-get update && sudo apt-get install -y --no-install-recommends ${debs.join(" ")}`;
  }
  const rpms = [...new Set(missing.map((tool) => tool.rpm))];
  return isOnPath("dnf") ? `sudo dnf install -y ${rpms.join(" ")}` : undefined;
}

/** The stamp holds the digest of the lock file that node_modules was made from. */
function installModules() {
  const digest = createHash("sha256")
    .update(readFileSync(join(root, "package-lock.json")))
    .digest("hex");
  const stamp = join(root, "node_modules", ".fleece-stamp");
  if (existsSync(stamp) ? readFileSync(stamp, "utf8") === digest : isInstalledByHand()) return;
  say("Installing the npm packages of package-lock.json");
  const args = ["ci", "--no-audit", "--no-fund", "--loglevel=error"];
  runNpm(args);
  writeFileSync(stamp, digest);
}

/** npm leaves a copy of the lock file behind: newer than ours means that somebody ran npm since ours changed. */
function isInstalledByHand() {
  const installed = join(root, "node_modules", ".package-lock.json");
  return (
    existsSync(installed) && statSync(installed).mtimeMs >= statSync(join(root, "package-lock.json")).mtimeMs
  );
}

function build() {
  runNpm(["run", "--silent", "build"]);
}

function runNpm(args) {
  const npm = process.env["npm_execpath"];
  // npm sets its own path when it runs this script; that npm need not be the one on PATH.
  if (npm?.endsWith(".js")) run(process.execPath, [npm, ...args]);
  else run("npm", args);
}

/** Runs quietly; when the command fails, its output is what the user needs to see. */
function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, encoding: "utf8", maxBuffer: 1 << 28, ...options });
  if (result.status === 0) return;
  const output = `${result.stdout ?? ""}${result.stderr ?? ""}${result.error?.message ?? ""}`.trim();
  throw new SetupProblem(`${output}\nFailed: ${command} ${args.join(" ")}`);
}

function nameOf({ command, file, module }) {
  return command ?? file ?? `the module ${module} of /usr/bin/python3`;
}

function isThere({ command, file, module }) {
  if (file !== undefined) return existsSync(file);
  return module === undefined ? isOnPath(command) : hasModule(module);
}

/** The distribution's Python, whatever else is on PATH. */
function hasModule(name) {
  const look = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)";
  return spawnSync("/usr/bin/python3", ["-c", look, name]).status === 0;
}

/** mkfs and its kin live in sbin, which is not on every user's PATH. */
function isOnPath(command) {
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  return folders.some((folder) => isExecutable(join(folder, command)));
}

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

function say(line) {
  process.stderr.write(`${line}\n`);
}

try {
  main(process.argv[2]);
} catch (error) {
  if (!(error instanceof SetupProblem)) throw error;
  say(error.message);
  process.exitCode = 1;
}
