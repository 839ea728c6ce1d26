import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { makeCertificates } from "../qemu/nbd-client-ts/support/certificates.js";
import { BoundProcess } from "../support/bound-process.js";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import { measureClient, measureProcess } from "./support/child.js";
import { BenchExport, randomImage, type BenchImage } from "./support/exports.js";
import { format, gibPerSecond, median, table, type Row } from "./support/figures.js";
import { inTurn, type Client } from "./support/in-turn.js";

/**
 * `npm run bench:front -- [--mib 1024] [--rounds 5]`: the same readers on the private socket, through the front with TLS
 * and without, and on QEMU's and nbdkit's own TLS exports, in turn. Ratios are taken within rounds. What those two servers
 * keep of their own speed in clear is how much TLS costs on this machine, without a front.
 */
const { values } = parseArgs({
  options: {
    mib: { type: "string", default: "1024" },
    rounds: { type: "string", default: "5" },
  },
});
const sizeBytes = Number(values.mib) * 2 ** 20;

async function firstLine(server: BoundProcess): Promise<string> {
  while (!server.stdout.includes("\n")) {
    if (!server.running) throw new Error(`The front did not start: ${server.stderr}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return server.stdout.trim();
}

/** User and system time of a process so far, in seconds. */
async function cpuSecondsOf(pid: number): Promise<number> {
  const fields = (await readFile(`/proc/${pid}/stat`, "utf8")).split(") ")[1]?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

async function startFront(backend: string, certificates: string): Promise<[BoundProcess, number]> {
  const script = new URL("./support/front-process.ts", import.meta.url).pathname;
  const flags = ["--conditions=source", "--import", "tsx", script];
  const front = await BoundProcess.start(process.execPath, [...flags, backend, certificates]);
  return [front, Number(await firstLine(front))];
}

async function startQemuTls({ path, format: driver }: BenchImage, certificates: string) {
  const port = 20_000 + (process.pid % 20_000);
  const node = `driver=${driver},node-name=d,read-only=on,file.driver=file,file.filename=${path}`;
  const server = await BoundProcess.start("qemu-storage-daemon", [
    ...["--object", `tls-creds-x509,id=t,endpoint=server,dir=${certificates},verify-peer=on`],
    ...["--nbd-server", `addr.type=inet,addr.host=127.0.0.1,addr.port=${port},tls-creds=t,max-connections=0`],
    ...["--blockdev", node, "--export", "type=nbd,id=e,node-name=d,name=disk"],
  ]);
  return [server, port] as const;
}

/** The same file, its clusters as they lie in it. Without a wait: the first client waits for it. */
async function startNbdkitTls({ path }: BenchImage, certificates: string) {
  const port = 40_000 + (process.pid % 20_000);
  const tls = ["--tls=require", `--tls-certificates=${certificates}`, "--tls-verify-peer"];
  const address = ["-f", "-r", "-i", "127.0.0.1", "-p", String(port)];
  return [await BoundProcess.start("nbdkit", [...address, ...tls, "file", path]), port] as const;
}

await using directory = await TemporaryDirectory.create();
const certificates = await makeCertificates(directory.file("pki"));
const image = await randomImage(sizeBytes);
await using source = await BenchExport.storageDaemon(directory.file("source"), image);
const [tlsFront, tlsPort] = await startFront(source.socketPath, certificates);
const [clearFront, clearPort] = await startFront(source.socketPath, "plaintext");
const [qemu, qemuPort] = await startQemuTls(image, certificates);
const [nbdkit, nbdkitPort] = await startNbdkitTls(image, certificates);
await using nbdkitInClear = await BenchExport.nbdkit(directory.file("nbdkit"), "-r", "file", image.path);
await using _servers = {
  async [Symbol.asyncDispose]() {
    for (const server of [tlsFront, clearFront, qemu, nbdkit]) await server.stop("SIGKILL");
  },
};

const secured = (port: number) => `nbds://127.0.0.1:${port}/disk?tls-certificates=${certificates}`;
const places: Readonly<Record<string, string>> = {
  "private socket": source.uri,
  "front, TLS": secured(tlsPort),
  "front, in clear": `nbd://127.0.0.1:${clearPort}/disk`,
  "QEMU's own TLS": secured(qemuPort),
  "nbdkit, in clear": nbdkitInClear.uri,
  "nbdkit's own TLS": secured(nbdkitPort),
};
const readers: Readonly<Record<string, (uri: string) => NonNullable<Client["run"]>>> = {
  nbdcopy: (uri) => () => measureProcess(sizeBytes, "nbdcopy", uri, "null:"),
  ours: (uri) => () => measureClient("pull.ts", uri),
};
const clients = Object.entries(readers).flatMap(([reader, measure]) =>
  Object.entries(places).map(([place, uri]): Client => ({ name: `${reader}: ${place}`, run: measure(uri) })),
);
const before = await cpuSecondsOf(tlsFront.pid);
const rows = await inTurn(clients, Number(values.rounds));
const frontCpu = (await cpuSecondsOf(tlsFront.pid)) - before;

const named = (name: string): Row => rows.find((row) => row.name === name) ?? { name, runs: [] };
function ratio(numerator: string, denominator: string): string {
  const below = named(denominator).runs;
  const ratios = named(numerator).runs.map(
    (run, round) => gibPerSecond(run) / gibPerSecond(below[round] ?? run),
  );
  return median(ratios).toFixed(2);
}
const goals: readonly (readonly [string, string, string])[] = [
  ["nbdcopy: front, TLS", "nbdcopy: private socket", "0.70"],
  ["ours: front, TLS", "ours: private socket", "0.70"],
  ["nbdcopy: front, TLS", "nbdcopy: QEMU's own TLS", "0.80"],
  ["ours: front, TLS", "ours: QEMU's own TLS", ""],
  ["nbdcopy: QEMU's own TLS", "nbdcopy: private socket", ""],
  ["ours: QEMU's own TLS", "ours: private socket", ""],
  ["nbdcopy: nbdkit's own TLS", "nbdcopy: nbdkit, in clear", ""],
  ["ours: nbdkit's own TLS", "ours: nbdkit, in clear", ""],
  ["nbdcopy: front, in clear", "nbdcopy: private socket", ""],
  ["ours: front, in clear", "ours: private socket", ""],
];
const compared = goals.map(([above, below, goal]) => [above, below, ratio(above, below), goal]);
const frontGib = (sizeBytes / 2 ** 30) * Number(values.rounds) * 2;
process.stdout.write(
  `Pull of ${values.mib} MiB, warm qcow2, ${values.rounds} rounds\n` +
    `${table(rows, "nbdcopy: private socket")}\n\n` +
    `${format([["this", "held against", "ratio", "goal"], ...compared])}\n\n` +
    `The front with TLS used ${(frontCpu / frontGib).toFixed(3)} CPU s/GiB\n`,
);
