/**
 * The layer rules of src/README.md. An import points one way:
 *   cli -> api -> services -> ports <- drivers -> qmp, nbd-client-ts;   shared <- everything;   model <- ports and up.
 */
const layer = (name, mayUse, why) => ({
  name: `${name}-imports`,
  comment: why,
  severity: "error",
  from: { path: `^src/${name}/` },
  to: {
    path: "^(src/|node_modules/nbd-client-ts)",
    pathNot: [`^src/${name}/`, ...mayUse.map((used) => `^src/${used}(/|$)`)],
  },
});

module.exports = {
  forbidden: [
    layer("nbd-client-ts", [], "The NBD client is a package of its own, usable without the agent"),
    layer("qmp", [], "The QMP session knows nothing of backups, so that it can be trusted on its own"),
    layer("shared", [], "shared holds what every layer may use, so it may use none of them"),
    layer("model", ["shared"], "model holds pure values and rules"),
    layer(
      "ports",
      ["shared", "model"],
      "A port is a contract in terms of the model, never of an implementation",
    ),
    layer(
      "services",
      ["shared", "model", "ports"],
      "Services decide; they never see QMP, NBD or a file format",
    ),
    layer(
      "drivers",
      ["shared", "model", "ports", "qmp", "nbd-client-ts"],
      "A driver implements ports; what to do is decided in services",
    ),
    layer(
      "api",
      ["shared", "model", "services", "ports"],
      "The API translates messages; it takes no decisions",
    ),
    layer(
      "cli",
      ["shared", "api", "agent.ts"],
      "The command line speaks the API's messages and decides nothing",
    ),
    {
      name: "model-is-pure",
      comment: "model does no I/O, so that every rule in it can be tested by value",
      severity: "error",
      from: { path: "^src/model/" },
      to: { dependencyTypes: ["core"], pathNot: "^(node:)?(buffer|util|path)$" },
    },
    {
      name: "no-cycles",
      comment: "A cycle has no bottom to start reading from",
      severity: "error",
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ["type-only"] } },
    },
    { name: "no-unresolved", severity: "error", from: {}, to: { couldNotResolve: true } },
  ],
  options: {
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.json" },
    doNotFollow: { path: "node_modules" },
    exclude: { path: "/dist/" },
    enhancedResolveOptions: {
      conditionNames: ["source", "import", "types", "node", "default"],
      exportsFields: ["exports"],
    },
  },
};
