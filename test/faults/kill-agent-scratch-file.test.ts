import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { startSite } from "../support/site.js";
import { startWithFault } from "./support/steps.js";

/** A snapshot whose old content goes to `mine/a`, whose directory is otherwise empty. */
async function place() {
  const at = await startSite();
  const directory = at.directory.file("mine");
  await mkdir(directory, { mode: 0o700 });
  const file = `${directory}/a`;
  const document = at.directory.file("snapshot.xml");
  await writeFile(
    document,
    `<domainblocksnapshot><name>n</name><disk name='vda'><scratch file='${file}'/></disk></domainblocksnapshot>`,
  );
  return { at, directory, file, create: ["block-snapshot", "create", "vm", "--xml", document] };
}

describe("a scratch file of the caller's choice", () => {
  it.each(["before", "after"] as const)(
    "leaves nothing in its directory when the command is killed %s it gets its name",
    async (when) => {
      const { at, directory, create } = await place();
      const clean = await at.state();
      const command = await startWithFault(at, create, { match: /^link /, at: 1, when, action: "kill" });
      expect(await command.process.result()).toMatchObject({ signal: "SIGKILL" });
      expect(await readdir(directory)).toHaveLength(when === "before" ? 1 : 2);
      await at.json("block-snapshot", "list", "vm");
      expect(await readdir(directory)).toEqual([]);
      expect(await at.state()).toEqual(clean);
    },
  );

  it("is never a file that another program makes in the last moment", async () => {
    const { at, directory, file, create } = await place();
    const fault = { match: /^link /, at: 1, when: "before", action: "stop" } as const;
    const command = await startWithFault(at, create, fault);
    expect(await command.stopped()).toBe(true);
    await writeFile(file, "precious");
    command.continue();
    const { exitCode, stderr } = await command.process.result();
    expect(stderr).toContain("(ALREADY_EXISTS)");
    expect(exitCode).toBe(4);
    expect(await readdir(directory)).toEqual(["a"]);
    expect(await readFile(file, "utf8")).toBe("precious");
  });
});
