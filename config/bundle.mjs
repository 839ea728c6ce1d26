import { chmod } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

/**
 * Joins the compiled agent and its libraries into dist/bin/fleece.js: Node needs twice as long to find, read and link
 * the 500 files one by one, and every command waits for that. Files beside the code are looked for two folders up.
 */
const root = fileURLToPath(new URL("../", import.meta.url));
const outfile = `${root}dist/bin/fleece.js`;
await build({
  absWorkingDir: root,
  entryPoints: ["dist/cli/main.js"],
  outfile,
  bundle: true,
  platform: "node",
  target: "node20",
  format: "esm",
  // Finds its compiled addon relative to itself.
  external: ["fs-native-extensions"],
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
await chmod(outfile, 0o755);
