import { describe, expect, it } from "vitest";
import { endOrAbort } from "../../../src/api/until.js";
import { fleece, someConfig } from "./run-in-process.js";

describe("SIGINT and SIGTERM", () => {
  const interrupted = async (signals: readonly NodeJS.Signals[], ...args: string[]) => {
    const before = process.listenerCount("SIGINT");
    const outcome = await fleece(["domain", "list", "--embedded", "--config", await someConfig(), ...args], {
      startAgent: () => {
        // Only the listeners of the command, which are the last, so that the test runner's do not act.
        for (const name of signals) process.listeners(name).at(-1)?.(name);
        return Promise.reject(new DOMException("aborted", "AbortError"));
      },
    });
    expect(process.listenerCount("SIGINT")).toBe(before);
    return outcome;
  };

  it.each(["SIGINT", "SIGTERM"] as const)(
    "%s ends the command as interrupted, with exit code 1",
    async (name) => {
      expect(await interrupted([name])).toEqual({
        exitCode: 1,
        stdout: "",
        stderr: `fleece: cleaning up…\nfleece: Interrupted by ${name} (INTERRUPTED)\n`,
      });
    },
  );

  it("do not cut the clean-up short when they come again", async () => {
    const { stderr } = await interrupted(["SIGINT", "SIGTERM"]);
    expect(stderr).toBe(
      "fleece: cleaning up…\nfleece: still cleaning up…\nfleece: Interrupted by SIGINT (INTERRUPTED)\n",
    );
  });

  it("leave nothing but the error on stderr with --json", async () => {
    const { stderr } = await interrupted(["SIGINT"], "--json");
    expect(JSON.parse(stderr)).toMatchObject({ error: { code: "INTERRUPTED", facts: { signal: "SIGINT" } } });
  });
});

describe("endOrAbort", () => {
  it("tells why the server ended", async () => {
    const { signal } = new AbortController();
    expect(await endOrAbort(Promise.resolve("killed"), signal)).toBe("killed");
  });

  it("tells nothing when the signal came, even if the server ended with it", async () => {
    const controller = new AbortController();
    const waiting = endOrAbort(new Promise(() => undefined), controller.signal);
    controller.abort();
    expect(await waiting).toBeUndefined();
    expect(await endOrAbort(Promise.resolve("killed"), controller.signal)).toBeUndefined();
  });
});
