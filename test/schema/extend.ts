/**
 * `npm run schema:extend`: takes what was added to the .proto files over into baseline.json, which the next changes must
 * then keep. Refuses when something that clients depend on is gone or has changed.
 */
import { writeFile } from "node:fs/promises";
import { protoRoot } from "../../src/api/proto.js";
import { BASELINE_PATH, breaks, describeSchema, readBaseline } from "./schema.js";

const schema = describeSchema(protoRoot());
const problems = breaks(await readBaseline(), schema);
if (problems.length === 0) await writeFile(BASELINE_PATH, `${JSON.stringify(schema, undefined, 2)}\n`);
else
  process.stderr.write(`This would break clients:\n${problems.map((problem) => `  ${problem}\n`).join("")}`);
process.exitCode = problems.length === 0 ? 0 : 1;
