/**
 * Makes the TypeScript types of proto/ in src/api/generated, which is not committed: `node config/generate.mjs`.
 * Does nothing as long as neither the .proto files nor the packages have changed.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const generated = join(root, "src", "api", "generated");
const stamp = join(generated, "digest");
/** Whoever runs at the same time must find all of the types, or the old ones. */
const draft = `${generated}-${process.pid}`;

const protos = readdirSync(join(root, "proto"), { recursive: true })
  .filter((name) => name.startsWith("fleece/") && name.endsWith(".proto"))
  .toSorted();
const digest = digestOf([
  fileURLToPath(import.meta.url),
  join(root, "package-lock.json"),
  ...protos.map((name) => join(root, "proto", name)),
]);
if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== digest) {
  try {
    generate();
  } finally {
    rmSync(draft, { recursive: true, force: true });
  }
}

/** The options are those that the .proto files are loaded with: src/api/loader.ts. */
function generate() {
  const generator = join(root, "node_modules/@grpc/proto-loader/build/bin/proto-loader-gen-types.js");
  const options = ["--longs=Number", "--enums=String", "--defaults"];
  const output = ["--grpcLib=@grpc/grpc-js", "--importFileExtension=.js", "-I", "proto", "-O", draft];
  const result = spawnSync(process.execPath, [generator, ...options, ...output, ...protos], {
    cwd: root,
    encoding: "utf8",
  });
  if (result.status !== 0) throw new Error(`${result.stdout}${result.stderr}The types were not generated`);
  // A summary of each .proto file, which nobody needs and which does not pass our compiler options.
  for (const name of readdirSync(draft)) if (name.endsWith(".ts")) rmSync(join(draft, name));
  writeFileSync(join(draft, "digest"), digest);
  rmSync(generated, { recursive: true, force: true });
  renameSync(draft, generated);
}

function digestOf(files) {
  const hash = createHash("sha256");
  for (const file of files) hash.update(file).update("\0").update(readFileSync(file)).update("\0");
  return hash.digest("hex");
}
