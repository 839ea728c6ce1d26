import { chmod, writeFile } from "node:fs/promises";
import { inspect } from "node:util";
import { describe, expect, it } from "vitest";
import { readKey } from "../../../src/drivers/repository/key-source.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const KEY = "0123456789abcdef0123456789ABCDEF";

async function keyFile(content: string, mode = 0o600): Promise<string> {
  const directory = await temporaryDirectory();
  const path = directory.file("key");
  await writeFile(path, content);
  await chmod(path, mode);
  return path;
}

describe("readKey", () => {
  it("takes a file's line, and what a command prints, for the same key", async () => {
    const fromFile = await readKey({ keyFile: await keyFile(`${KEY}\n`) });
    const script = `echo ${KEY}; echo noise >&2`;
    const fromCommand = await readKey({ keyCommand: ["sh", "-c", script] });
    expect(fromFile.passphrase.reveal()).toBe(KEY);
    expect(fromCommand.passphrase.reveal()).toBe(KEY);
    expect(fromCommand.id).toBe(fromFile.id);
    const other = await readKey({ keyFile: await keyFile(KEY.replace("0", "1")) });
    expect(other.id).not.toBe(fromFile.id);
  });

  it("shows the key in no text that is made of it", async () => {
    const key = await readKey({ keyFile: await keyFile(KEY) });
    for (const text of [inspect(key, { depth: 9 }), JSON.stringify(key), String(key.passphrase)]) {
      expect(text).not.toContain(KEY);
    }
  });

  it.each([
    ["is short", "short", "got 5 characters"],
    ["has two lines", `${KEY}\n${KEY}\n`, "one line"],
    ["is not ASCII", `${KEY}é`, "printable ASCII"],
    ["is empty", "", "got 0 characters"],
    ["is long", "x".repeat(1025), "got 1025 characters"],
  ])("refuses one that %s", async (_, content, words) => {
    const reading = readKey({ keyFile: await keyFile(content) });
    const error = await reading.then(
      () => undefined,
      (reason: unknown) => reason as Error,
    );
    expect(error).toMatchObject({
      code: "KEY_UNAVAILABLE",
      message: expect.stringContaining(words) as string,
    });
    if (content !== "") expect(inspect(error)).not.toContain(content);
  });

  it("refuses a file that others may read, and one that is missing", async () => {
    for (const mode of [0o640, 0o604, 0o620]) {
      const reading = readKey({ keyFile: await keyFile(KEY, mode) });
      await expect(reading).rejects.toMatchObject({ code: "KEY_UNAVAILABLE" });
    }
    const missing = readKey({ keyFile: "/nonexistent/key" });
    await expect(missing).rejects.toThrow("Cannot read the key file /nonexistent/key: no such file");
  });

  it("tells neither what a failing command printed nor its arguments", async () => {
    const reading = readKey({ keyCommand: ["sh", "-c", `echo ${KEY}; echo ${KEY} >&2; exit 3`] });
    const error = await reading.catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: "KEY_UNAVAILABLE" });
    expect((error as Error).message).toBe(
      "Cannot get the key of the repository from sh: it ended with exit code 3",
    );
    expect(inspect(error)).not.toContain(KEY);
    const absent = readKey({ keyCommand: ["/nonexistent/program"] });
    await expect(absent).rejects.toMatchObject({ code: "KEY_UNAVAILABLE" });
  });

  it("kills a command when the call is cancelled", async () => {
    const cancel = new AbortController();
    const reading = readKey({ keyCommand: ["sh", "-c", "sleep 600"] }, cancel.signal);
    cancel.abort(new Error("enough"));
    await expect(reading).rejects.toThrow("enough");
  });
});
