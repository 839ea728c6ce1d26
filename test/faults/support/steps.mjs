/**
 * Loaded into the built command by `--import`: counts the steps by which the command changes the world, and at one of them
 * kills or stops the process, or lets the step fail. The command itself knows nothing of this.
 *
 * A step is named `rename PATH`, `link PATH`, `rm PATH`, `mkdir PATH`, `unlink PATH`, `write PATH`, `sync PATH`, `spawn PROGRAM ARGUMENTS`,
 * `qmp COMMAND` or `nbd-read`. `FLEECE_TEST_STEPS` holds JSON: see StepFault in steps.ts.
 */
import childProcess, { execFileSync } from "node:child_process";
import { appendFileSync } from "node:fs";
import fs from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import net from "node:net";
import { isMainThread } from "node:worker_threads";

const NBD_REQUEST_MAGICS = new Set([0x25609513, 0x21e41c71]);
const NBD_READ = 0;

const settings = process.env["FLEECE_TEST_STEPS"];
if (settings !== undefined && isMainThread) install(JSON.parse(settings));

function install({ match, log, at, when, action, copy }) {
  const pattern = new RegExp(match);
  let count = 0;

  /** Runs one step, or what is put in its place. Works for steps that give a promise and for those that do not. */
  function step(name, perform) {
    if (!pattern.test(name)) return perform();
    count++;
    appendFileSync(log, `${name.replaceAll(/\s+/g, " ")}\n`);
    if (copy !== undefined) execFileSync("cp", ["-a", "--sparse=always", copy.from, `${copy.to}/${count}`]);
    const fires = action === "fail-from" ? count >= at : count === at;
    if (!fires) return perform();
    if (action === "fail" || action === "fail-from") throw noSpace(name);
    if (when === "before") {
      end(action);
      return perform();
    }
    const result = perform();
    if (!(result instanceof Promise)) {
      end(action);
      return result;
    }
    return result.then((value) => {
      end(action);
      return value;
    });
  }

  for (const verb of ["rm", "mkdir", "unlink"]) {
    const original = fs[verb];
    fs[verb] = async (path, ...rest) => step(`${verb} ${path}`, () => original(path, ...rest));
  }
  const { link, rename, open } = fs;
  fs.link = async (from, to) => step(`link ${to}`, () => link(from, to));
  fs.rename = async (from, to) => step(`rename ${to}`, () => rename(from, to));
  const paths = new WeakMap();
  fs.open = async (path, ...rest) => {
    const file = await open(path, ...rest);
    paths.set(file, path);
    return file;
  };
  void open("/dev/null").then(async (file) => {
    const prototype = Object.getPrototypeOf(file);
    await file.close();
    for (const [method, verb] of [
      ["sync", "sync"],
      ["writeFile", "write"],
      ["write", "write"],
    ]) {
      const original = prototype[method];
      prototype[method] = async function (...args) {
        return step(`${verb} ${paths.get(this) ?? ""}`, () => original.apply(this, args));
      };
    }
  });
  const { spawn } = childProcess;
  childProcess.spawn = (program, args, ...rest) =>
    step(`spawn ${program} ${(Array.isArray(args) ? args : []).join(" ")}`, () =>
      spawn(program, args, ...rest),
    );
  const { write } = net.Socket.prototype;
  net.Socket.prototype.write = function (data, ...rest) {
    const name = wireStep(data);
    const perform = () => write.call(this, data, ...rest);
    return name === undefined ? perform() : step(name, perform);
  };
  syncBuiltinESMExports();
}

function wireStep(data) {
  const bytes = Buffer.from(data);
  if (bytes.length >= 28 && NBD_REQUEST_MAGICS.has(bytes.readUInt32BE(0))) {
    return bytes.readUInt16BE(6) === NBD_READ ? "nbd-read" : undefined;
  }
  if (bytes[0] !== 0x7b) return undefined;
  const [, command] = /"execute":"([^"]+)"/.exec(bytes.toString()) ?? [];
  return command === undefined ? undefined : `qmp ${command}`;
}

function noSpace(name) {
  return Object.assign(new Error(`ENOSPC: no space left on device, ${name}`), { code: "ENOSPC", errno: -28 });
}

/** Nothing more is done by this thread before the signal has arrived. */
function end(action) {
  process.kill(process.pid, action === "stop" ? "SIGSTOP" : "SIGKILL");
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, action === "stop" ? 100 : undefined);
}
