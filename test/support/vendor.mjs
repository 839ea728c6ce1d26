/**
 * A vendor's backup of a domain, step by step, in a process of its own that can be killed at each of them: it prints what it
 * has come to. `node vendor.mjs SOCKET PROTO_DIRECTORY LEASE_MS LAST`: between two calls it goes no further than `LAST`.
 */
import { spawn } from "node:child_process";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [socket, protos, leaseMs, last] = process.argv.slice(2);
const { fleece } = grpc.loadPackageDefinition(
  loadSync("fleece/v1/block_snapshot.proto", { includeDirs: [protos], longs: Number, enums: String }),
);
const at = [`unix:${socket}`, grpc.credentials.createInsecure()];
const snapshots = new fleece.v1.BlockSnapshots(...at);
const exports = new fleece.v1.BlockExports(...at);

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

async function reach(point) {
  console.log(point);
  if (point === last) await new Promise((resolve) => setTimeout(resolve, 3_600_000));
}

const domain = "vm";
const name = "night";
for (const client of [snapshots, exports]) {
  await new Promise((resolve, reject) => {
    client.waitForReady(Date.now() + 60_000, (error) => (error ? reject(error) : resolve()));
  });
}
const creation = call(snapshots, "Create", { domain, name, checkpoint: {}, leaseMs: Number(leaseMs) });
setImmediate(() => console.log("creating"));
await creation;
await reach("created");
const started = await call(exports, "Start", { domain, snapshot: name });
await reach("exported");
// A pipe that nobody reads: the reader comes to a halt in the midst of its requests, and dies with us.
const args = ["--pdeathsig", "KILL", "--", "nbdcopy", started.exports[0].uri, "-"];
const reader = spawn("setpriv", args, { stdio: ["ignore", "pipe", "ignore"] });
await new Promise((resolve) => reader.stdout.once("readable", resolve));
await reach("reading");
const deletion = call(snapshots, "Delete", { domain, name });
setImmediate(() => console.log("deleting"));
await deletion;
console.log("deleted");
