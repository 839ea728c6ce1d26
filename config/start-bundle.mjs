#!/usr/bin/env node
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { Script } from "node:vm";

/**
 * The command: bundle.mjs copies this file to dist/bin/fleece.js. It runs the bundle beside it with V8's compiled form of
 * it, which takes half the start and half the compiling away. Another version of Node refuses that form and compiles.
 * A bundle is plain ASCII, which as Latin-1 needs no decoding.
 */
const requireFromHere = createRequire(import.meta.url);
/** Libraries of the API, each by a function that loads it. */
let api;

function run(name, require) {
  const filename = fileURLToPath(new URL(`./${name}.cjs`, import.meta.url));
  const bundle = new Script(readFileSync(filename, "latin1"), {
    filename,
    cachedData: readFileSync(new URL(`./${name}.cache`, import.meta.url)),
  });
  const module = { exports: {} };
  bundle.runInThisContext()(module, module.exports, require, filename);
  return module.exports;
}

function requireForBundle(name) {
  if (!name.startsWith("api:")) return requireFromHere(name);
  api ??= run("api", requireFromHere);
  return api[name.slice("api:".length)]();
}

// A program that ends before this does is an error to Node: exit code 13.
await run("bundle", requireForBundle).finished;
