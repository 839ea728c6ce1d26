#!/usr/bin/env node
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { Script } from "node:vm";

/**
 * The command: bundle.mjs copies this file to dist/bin/fleece.js. It runs the bundle beside it with V8's compiled form of
 * it, which takes half the start and half the compiling away. Another version of Node refuses that form and compiles.
 * The bundle is plain ASCII, which as Latin-1 needs no decoding.
 */
const filename = fileURLToPath(new URL("./bundle.cjs", import.meta.url));
const bundle = new Script(readFileSync(filename, "latin1"), {
  filename,
  cachedData: readFileSync(new URL("./bundle.cache", import.meta.url)),
});
const module = { exports: {} };
bundle.runInThisContext()(module, module.exports, createRequire(import.meta.url), filename);
// A program that ends before this does is an error to Node: exit code 13.
await module.exports.finished;
