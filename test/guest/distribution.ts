import { access, chmod, mkdir, readdir, readFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { runCommand } from "./commands.js";

/** Where the parts of a guest are, once they are on this machine. */
export interface GuestParts {
  readonly version: string;
  readonly kernelPath: string;
  readonly modulesFolder: string;
  /** A statically linked busybox. */
  readonly busyboxPath: string;
}

/** Debian's small kernel for virtual machines, then Ubuntu's. Both point to the package with the version. */
const metaPackages = ["linux-image-cloud-amd64", "linux-image-virtual"];

/**
 * Gets a kernel and busybox: unpacked from the distribution's packages, which are not installed, or else from what
 * this machine has installed itself.
 */
export async function findGuestParts(workFolder: string, log: (line: string) => void): Promise<GuestParts> {
  try {
    return await downloadParts(workFolder, log);
  } catch (cause) {
    const installed = await installedParts();
    if (installed !== undefined) return installed;
    throw new Error(
      `Found no Linux kernel for the test guest. Type this, then try again:\n  ${await advice()}`,
      { cause },
    );
  }
}

async function downloadParts(workFolder: string, log: (line: string) => void): Promise<GuestParts> {
  const kernelPackage = await resolveKernelPackage();
  log(`Downloading ${kernelPackage} and busybox-static for the test guest (unpacked, not installed)`);
  const folder = join(workFolder, "packages");
  await mkdir(folder, { recursive: true });
  // apt fetches as the user _apt, who has to get into the folder.
  await chmod(folder, 0o755);
  await runCommand("apt-get", ["download", "-q", kernelPackage, "busybox-static"], { cwd: folder });
  const root = join(workFolder, "root");
  for (const name of await readdir(folder)) await runCommand("dpkg-deb", ["-x", join(folder, name), root]);
  const busybox = join(root, (await exists(join(root, "bin/busybox"))) ? "bin/busybox" : "usr/bin/busybox");
  return partsFrom(root, kernelPackage.replace("linux-image-", ""), busybox);
}

/** The lists of a fresh container are empty: root may fetch them. */
async function resolveKernelPackage(): Promise<string> {
  const known = await lookUpKernelPackage();
  if (known !== undefined) return known;
  if (process.getuid?.() === 0) await runCommand("apt-get", ["update", "-q"]);
  const fetched = await lookUpKernelPackage();
  if (fetched === undefined) throw new Error(`Expected one of the packages ${metaPackages.join(", ")}`);
  return fetched;
}

async function lookUpKernelPackage(): Promise<string | undefined> {
  for (const metaPackage of metaPackages) {
    const text = await runCommand("apt-cache", ["depends", metaPackage]).catch(() => "");
    const match = /Depends: (linux-image-\d\S*)/.exec(text.toString());
    if (match?.[1] !== undefined) return match[1];
  }
  return undefined;
}

/** The newest installed kernel that this user may read. */
async function installedParts(): Promise<GuestParts | undefined> {
  const versions = await readdir("/lib/modules").catch(() => []);
  const busybox = await findStaticBusybox();
  for (const version of versions.sort().reverse()) {
    if (busybox !== undefined && (await exists(`/boot/vmlinuz-${version}`)))
      return partsFrom("/", version, busybox);
  }
  return undefined;
}

async function findStaticBusybox(): Promise<string | undefined> {
  for (const folder of (process.env["PATH"] ?? "").split(delimiter)) {
    const path = join(folder, "busybox");
    const content = await readFile(path).catch(() => undefined);
    // A dynamically linked program names its loader.
    if (content !== undefined && !content.subarray(0, 4096).includes("ld-linux")) return path;
  }
  return undefined;
}

async function partsFrom(root: string, version: string, busyboxPath: string): Promise<GuestParts> {
  const modules = join(root, "lib/modules", version);
  const modulesFolder = (await exists(modules)) ? modules : join(root, "usr/lib/modules", version);
  const kernelPath = join(root, "boot", `vmlinuz-${version}`);
  return { version, kernelPath, modulesFolder, busyboxPath };
}

async function advice(): Promise<string> {
  if (await exists("/usr/bin/apt-get")) return "sudo apt-get update";
  if (await exists("/usr/bin/dnf"))
    return "sudo dnf install -y kernel-core busybox && sudo chmod a+r /boot/vmlinuz-*";
  return "(install a Linux kernel under /boot and a static busybox with your package manager)";
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
