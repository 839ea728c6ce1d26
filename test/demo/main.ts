import { relative } from "node:path";
import { parseArgs } from "node:util";
import { formatDuration } from "../../src/shared/units.js";
import { commandLine, DemoFailure, mainPath } from "./fleece-command.js";
import { domain } from "./scene.js";
import { Screen } from "./screen.js";
import { tellStory } from "./story.js";
import { Workplace } from "./workplace.js";

const usage = `Usage: npm run demo [-- --keep]

Backs up a real VM with the built command, restores it and proves the result; about a minute.
  --keep  leave disks, backups and restored files behind, and say how to look at them
Exit codes: 0 all proofs hold; 1 one failed; 2 wrong usage; 130 interrupted
`;

/** Resolves to the exit code. */
async function main(): Promise<number> {
  const keep = readArguments();
  if (typeof keep === "number") return keep;
  const screen = new Screen();
  const workplace = await Workplace.create();
  try {
    return await Promise.race([perform(workplace, screen, keep), interruption(workplace, screen)]);
  } finally {
    await workplace[Symbol.asyncDispose]();
  }
}

/** Whether to keep the files, or the exit code if that is all. */
function readArguments(): boolean | number {
  try {
    const options = { keep: { type: "boolean" }, help: { type: "boolean", short: "h" } } as const;
    const { values } = parseArgs({ options });
    if (values.help !== true) return values.keep === true;
    process.stdout.write(usage);
    return 0;
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n\n${usage}`);
    return 2;
  }
}

async function perform(workplace: Workplace, screen: Screen, keep: boolean): Promise<number> {
  const startMs = performance.now();
  workplace.keepFiles = keep;
  screen.title("fleece: back up a running VM, restore it, prove it");
  screen.line(
    `Folder: ${shown(workplace.folder)}${keep ? "" : ", removed at the end (keep it: npm run demo -- --keep)"}`,
  );
  screen.line(`There, \`fleece\` means \`node ${mainPath}\``);
  const exitCode = await judge(workplace, screen, startMs);
  if (keep) invite(workplace, screen);
  return exitCode;
}

async function judge(workplace: Workplace, screen: Screen, startMs: number): Promise<number> {
  try {
    const { held, failed } = await tellStory(workplace, screen);
    const took = formatDuration(performance.now() - startMs);
    screen.verdict(
      failed === 0,
      failed === 0
        ? `All ${held} proofs hold (${took})`
        : `${failed} of ${held + failed} proofs FAILED (${took})`,
    );
    return failed === 0 ? 0 : 1;
  } catch (error) {
    if (!(error instanceof DemoFailure)) throw error;
    screen.failed(error.message);
    screen.verdict(false, "The demo could not go on; nothing is proved");
    return 1;
  }
}

function invite({ folder, sockets }: Workplace, screen: Screen): void {
  screen.title("\nLook around; the VM is off, which is no obstacle");
  screen.command("$", `cd ${shown(folder)}; alias fleece='node ${mainPath}'`);
  screen.command("$", commandLine("domain", "show", domain));
  screen.command("$", commandLine("backup", "run", domain, "--disk", "vda"));
  screen.command("$", `qemu-img info --backing-chain $(ls -d backups/${domain}/* | tail -1)/vda.qcow2`);
  screen.command("$", "/sbin/debugfs -R 'ls -l /photos' look-1/copy.raw | head");
  screen.command("$", `cd -; rm -r ${shown(folder)} ${sockets.path}`);
}

function shown(path: string): string {
  return relative(process.cwd(), path);
}

/** Resolves to the exit code once Ctrl-C, or a request to end, has come. */
function interruption(workplace: Workplace, screen: Screen): Promise<number> {
  const ending = new Promise<number>((resolve) => {
    for (const [signal, exitCode] of endings) {
      // Not once: npm and tsx pass on what the terminal has sent already, and that must not end the tidying.
      process.on(signal, () => {
        workplace.keepFiles = false;
        resolve(exitCode);
      });
    }
  });
  return ending.then((exitCode) => {
    screen.verdict(false, "Interrupted; nothing is kept");
    return exitCode;
  });
}

const endings = [
  ["SIGINT", 130],
  ["SIGTERM", 143],
  ["SIGHUP", 129],
] as const;

// What was interrupted may still wait for something; its processes end with this one.
process.exit(await main());
