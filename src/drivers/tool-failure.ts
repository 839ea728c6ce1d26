import { FleeceError, type ErrorCode } from "../shared/errors.js";

/** Which distribution package has a program that is missing. */
const PACKAGES: Readonly<Record<string, string>> = {
  "qemu-img": "qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL) or qemu-tools (openSUSE)",
  "qemu-storage-daemon": "qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL) or qemu-tools (openSUSE)",
  setpriv: "util-linux",
  cat: "coreutils",
  ionice: "util-linux",
  lvs: "lvm2",
  lvcreate: "lvm2",
  lvremove: "lvm2",
};

/** What QEMU's programs print when an operation fails, in the order in which to look. */
const KNOWN_WORDS: readonly (readonly [RegExp, ErrorCode, (file: string) => string])[] = [
  [/Failed to get (shared )?"[^"]*" lock/, "DISK_IN_USE", (file) => `Another program holds ${file}`],
  [/No space left on device|Disk quota exceeded/, "NO_SPACE", (file) => `No space left for ${file}`],
  [
    /Permission denied|Operation not permitted|Read-only file system/,
    "PERMISSION_DENIED",
    (file) => `May not open ${file}`,
  ],
  [/No such file or directory/, "PATH_NOT_FOUND", (file) => `Cannot find ${file}`],
];

export interface ToolEnding {
  /** The file that the tool worked on. */
  readonly path?: string | undefined;
  /** Why the tool could not be started at all, if so. */
  readonly errno?: string | undefined;
  /** What it printed, cleaned. */
  readonly output: string;
  /** How it ended, as a predicate: `ended with exit code 1`. */
  readonly ending: string;
  readonly cause?: unknown;
}

/** The coded error for a QEMU program that failed. */
export function toolFailure(tool: string, failure: ToolEnding): FleeceError {
  const options = {
    cause: failure.cause,
    facts: { tool, ...(failure.path === undefined ? {} : { path: failure.path }) },
  };
  if (failure.errno === "ENOENT") return toolMissing(tool, options);
  for (const [words, code, sentence] of KNOWN_WORDS) {
    if (!words.test(failure.output)) continue;
    return new FleeceError(code, `${sentence(failure.path ?? "a file")}: ${failure.output}`, options);
  }
  const said = failure.output === "" ? (failure.errno ?? "") : failure.output;
  const about = failure.path === undefined ? "" : ` on ${failure.path}`;
  const words = said === "" ? "" : `: ${said}`;
  return new FleeceError("QEMU_FAILED", `${tool}${about} ${failure.ending}${words}`, options);
}

export function toolMissing(
  tool: string,
  options: ConstructorParameters<typeof FleeceError>[2] = { facts: { tool } },
): FleeceError {
  const where = PACKAGES[tool];
  const hint = where === undefined ? "" : `; it is in the package ${where}`;
  return new FleeceError("TOOL_MISSING", `Cannot find the program ${tool}${hint}`, options);
}

const MAX_QUOTED_CHARACTERS = 1000;

/** One line, without the program's name and without control characters, of bounded length: the end says most. */
export function cleanOutput(output: string, tool: string): string {
  const text = output
    .split("\n")
    .map((line) => line.trim().replace(new RegExp(`^${tool}: `), ""))
    .filter((line) => line !== "" && !line.startsWith("Is another process using the image"))
    .join("; ")
    .replaceAll(/[\u0000-\u001f\u007f]/g, " ");
  return text.length <= MAX_QUOTED_CHARACTERS ? text : `…${text.slice(-MAX_QUOTED_CHARACTERS)}`;
}
