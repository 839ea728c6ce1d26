import { chmod, copyFile, mkdir, rm, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import { Script } from "node:vm";
import { build } from "esbuild";

/**
 * Joins the compiled agent and its libraries into dist/bin/bundle.cjs, with V8's compiled form of it in bundle.cache:
 * Node needs three times as long to find, read, link and compile the 500 files one by one, and every command waits for
 * that. Files beside the code are looked for two folders up. start-bundle.mjs becomes the command.
 */
const root = fileURLToPath(new URL("../", import.meta.url));
/** They look for their .proto files relative to themselves. Only `fleece serve` loads them. */
const withOwnProtos = ["@grpc/reflection", "grpc-health-check"];
/** A quarter of it all, for agents and their clients alone: joined in api.cjs, which a command reads when it needs them. */
const ofApi = ["@grpc/grpc-js", "@grpc/proto-loader", "prom-client", "protobufjs"];
const bin = `${root}dist/bin/`;

const common = {
  absWorkingDir: root,
  write: false,
  bundle: true,
  platform: "node",
  target: "node20",
  format: "cjs",
  // Half as much to parse; names stay for stack traces.
  minifyWhitespace: true,
  minifySyntax: true,
  legalComments: "eof",
  define: { "import.meta.url": "bundleUrl" },
  banner: {
    js: '(function(module,exports,require,__filename){const bundleUrl=require("node:url").pathToFileURL(__filename).href;',
  },
  footer: { js: "})" },
  logLevel: "warning",
};
/** Each is loaded when it is asked for. */
const loaders = ofApi.map((name) => `${JSON.stringify(name)}:()=>require(${JSON.stringify(name)})`);

await rm(bin, { recursive: true, force: true });
await mkdir(bin, { recursive: true });
await join("bundle", {
  entryPoints: ["dist/cli/main.js"],
  // The first finds its compiled addon relative to itself.
  external: ["fs-native-extensions", ...withOwnProtos],
  plugins: [{ name: "api", setup: leaveOut }],
});
await join("api", { stdin: { contents: `module.exports={${loaders.join(",")}}`, resolveDir: root } });
await copyFile(new URL("start-bundle.mjs", import.meta.url), `${bin}fleece.js`);
await chmod(`${bin}fleece.js`, 0o755);

function leaveOut({ onResolve }) {
  onResolve({ filter: /^[^./]/ }, ({ path }) =>
    ofApi.includes(path) ? { path: `api:${path}`, external: true } : undefined,
  );
}

async function join(name, options) {
  const filename = `${bin}${name}.cjs`;
  const { outputFiles } = await build({ ...common, ...options, outfile: filename });
  const source = outputFiles.map(({ text }) => text).join("");
  if (/[^\0-\x7f]/.test(source))
    throw new Error("Expected a bundle of ASCII alone: start-bundle.mjs reads it as such");
  // All functions, not those alone that run while the bundle is loaded.
  setFlagsFromString("--no-lazy");
  const script = new Script(source, { filename });
  // The form names the flags that it was made with, and is refused under others.
  setFlagsFromString("--lazy");
  await writeFile(filename, source);
  await writeFile(`${bin}${name}.cache`, script.createCachedData());
}
