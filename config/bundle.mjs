import { chmod, rm } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

/**
 * Joins the compiled agent and its libraries into dist/bin/fleece.js and a few files beside it: Node needs twice as long to find, read and link
 * the 500 files one by one, and every command waits for that. Files beside the code are looked for two folders up.
 */
const root = fileURLToPath(new URL("../", import.meta.url));
/** They look for their .proto files relative to themselves. Only `fleece serve` loads them. */
const withOwnProtos = ["@grpc/reflection", "grpc-health-check"];
const outdir = `${root}dist/bin`;
await rm(outdir, { recursive: true, force: true });
await build({
  absWorkingDir: root,
  entryPoints: { fleece: "dist/cli/main.js" },
  outdir,
  bundle: true,
  // What is imported only when it is needed, gRPC above all, stays in files of its own.
  splitting: true,
  chunkNames: "[hash]",
  platform: "node",
  target: "node20",
  format: "esm",
  // The first finds its compiled addon relative to itself.
  external: ["fs-native-extensions", ...withOwnProtos],
  // Half as much to parse; names stay for stack traces.
  minifyWhitespace: true,
  minifySyntax: true,
  legalComments: "eof",
  // For the CommonJS libraries within.
  banner: {
    js: 'import { createRequire as createRequireForLibraries } from "node:module";\nconst require = createRequireForLibraries(import.meta.url);',
  },
  logLevel: "warning",
});
await chmod(`${outdir}/fleece.js`, 0o755);
