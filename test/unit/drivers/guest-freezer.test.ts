import { describe, expect, it } from "vitest";
import { GuestFreezer, thawLeftover } from "../../../src/drivers/guest-agent/guest-freezer.js";
import { systemClock } from "../../../src/drivers/system-clock.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import type { AgentScript } from "../../support/scripted-guest-agent.js";
import { ScriptedGuestAgent } from "../../support/scripted-guest-agent.js";

const FREEZE_MS = 2_000;
/** Long enough for a loaded host, and short enough to wait for its end. */
const COMMAND_MS = 500;

async function scene(script?: AgentScript) {
  const socketPath = (await temporaryDirectory()).file("qga");
  const agent = untilTestEnds(await ScriptedGuestAgent.listen(socketPath));
  if (script !== undefined) agent.script = script;
  const limits = { commandTimeoutMs: COMMAND_MS, thawWithinMs: COMMAND_MS };
  const freezer = untilTestEnds(new GuestFreezer({ socketPath, clock: systemClock, ...limits }));
  return { agent, freezer, socketPath };
}

/** The stand-in obeys all commands but one. */
function except(name: string, answer: AgentScript): AgentScript {
  return (command, agent) => (command.execute === name ? answer(command, agent) : agent.obey(command));
}

describe("GuestFreezer with an agent that obeys", () => {
  it("freezes, and thaws with the count of what was frozen", async () => {
    const { agent, freezer } = await scene();
    expect(await freezer.prepare()).toBeUndefined();
    expect(await freezer.freeze(FREEZE_MS)).toBeUndefined();
    expect(agent.frozen).toBe(true);
    expect(await freezer.thaw()).toBe(1);
    expect(agent.frozen).toBe(false);
    expect(agent.commands.at(-1)).toBe("guest-fsfreeze-status");
  });

  it("skips replies to a former client, whole and half ones, before its own", async () => {
    const { agent, freezer } = await scene();
    agent.greeting = Buffer.concat([
      Buffer.from('{"return": "frozen"}\n{"retu'),
      Buffer.of(0xff),
      Buffer.from('{"return": 4711}\n{"return": {'),
    ]);
    expect(await freezer.prepare()).toBeUndefined();
  });

  it("leaves a guest alone that somebody else has frozen", async () => {
    const { agent, freezer } = await scene();
    agent.frozen = true;
    expect(await freezer.prepare()).toMatch(/somebody else/);
    expect(agent.commands).not.toContain("guest-fsfreeze-thaw");
  });

  it("does not freeze where a thaw is switched off", async () => {
    const info = { supported_commands: [{ name: "guest-fsfreeze-freeze", enabled: true }] };
    const { freezer } = await scene(except("guest-info", () => ({ return: info })));
    expect(await freezer.prepare()).toMatch(/does not offer guest-fsfreeze-status/);
  });
});

describe("GuestFreezer.prepare with an agent that misbehaves gives the reason in time", () => {
  const huge = `{"return": "${"x".repeat(300_000)}"}\n`;
  const cases: readonly (readonly [string, AgentScript, RegExp])[] = [
    ["says nothing", () => undefined, /did not answer guest-sync-delimited within 500 ms/],
    ["answers with another number", () => Buffer.from('\xff{"return": 1}\n', "latin1"), /did not answer/],
    ["sends garbage", except("guest-fsfreeze-status", () => "rubbish\n"), /no proper answer.*rubbish/],
    ["sends bytes that are no text", except("guest-info", () => Buffer.of(0xc3, 0x0a)), /not-utf8/],
    ["sends a line without end", except("guest-info", () => huge), /too-long/],
    ["lies about the status", except("guest-fsfreeze-status", () => ({ return: "melted" })), /no proper/],
    ["speaks twice", except("guest-fsfreeze-status", () => '{"return":"thawed"}\n{"return":1}\n'), /unasked/],
    [
      "refuses",
      except("guest-info", () => ({ error: { class: "GenericError", desc: "no, \u001b[2J" } })),
      /refused guest-info: "no, \\u001b\[2J"/,
    ],
  ];
  for (const [what, script, reason] of cases) {
    it(`when it ${what}`, async () => {
      const { freezer } = await scene(script);
      expect(await freezer.prepare()).toMatch(reason);
    });
  }

  it("when nobody listens", async () => {
    const socketPath = (await temporaryDirectory()).file("none");
    await using freezer = new GuestFreezer({ socketPath, clock: systemClock });
    expect(await freezer.prepare()).toMatch(/nobody listens/);
  });

  it("but ends as cancelled when the operation is", async () => {
    const { freezer } = await scene(() => undefined);
    const stop = new AbortController();
    const waiting = freezer.prepare(stop.signal);
    stop.abort();
    await expect(waiting).rejects.toMatchObject({ code: "INTERRUPTED" });
  });
});

describe("GuestFreezer.freeze", () => {
  it("thaws after a freeze whose reply is lost, and says why it is not frozen", async () => {
    const { agent, freezer } = await scene(
      except("guest-fsfreeze-freeze", (_, each) => {
        each.frozen = true;
        return undefined;
      }),
    );
    await freezer.prepare();
    expect(await freezer.freeze(100)).toMatch(/did not answer guest-fsfreeze-freeze within 100 ms/);
    expect(agent.frozen).toBe(false);
  });

  it("thaws when the agent found nothing to freeze, or lies about it", async () => {
    for (const [answer, reason] of [
      [0, /no file system/],
      ["many", /no proper answer/],
    ] as const) {
      const { agent, freezer } = await scene(
        except("guest-fsfreeze-freeze", (_, each) => {
          each.frozen = true;
          return { return: answer };
        }),
      );
      await freezer.prepare();
      expect(await freezer.freeze(FREEZE_MS)).toMatch(reason);
      expect(agent.frozen).toBe(false);
    }
  });

  it("thaws before it ends as cancelled", async () => {
    const stop = new AbortController();
    const { agent, freezer } = await scene(
      except("guest-fsfreeze-freeze", (_, each) => {
        each.frozen = true;
        stop.abort();
        return undefined;
      }),
    );
    await freezer.prepare();
    await expect(freezer.freeze(FREEZE_MS, stop.signal)).rejects.toMatchObject({ code: "INTERRUPTED" });
    expect(agent.frozen).toBe(false);
  });

  it("fails when nobody can tell whether the guest is thawed", async () => {
    const { freezer } = await scene((command, agent) =>
      agent.commands.includes("guest-fsfreeze-freeze") ? undefined : agent.obey(command),
    );
    await freezer.prepare();
    await expect(freezer.freeze(100)).rejects.toMatchObject({
      code: "QUIESCE_FAILED",
      message: expect.stringMatching(/may still be frozen/) as unknown,
    });
  });
});

describe("GuestFreezer.thaw", () => {
  it("believes the status, not the reply to the thaw, and tries again", async () => {
    let refusals = 2;
    const { agent, freezer } = await scene(
      except("guest-fsfreeze-thaw", (command, each) => (refusals-- > 0 ? { return: 1 } : each.obey(command))),
    );
    await freezer.prepare();
    await freezer.freeze(FREEZE_MS);
    expect(await freezer.thaw()).toBe(1);
    expect(agent.frozen).toBe(false);
  });
});

describe("thawLeftover", () => {
  it("thaws what is frozen, leaves what is not, and needs nothing where QEMU has ended", async () => {
    const { agent, socketPath } = await scene();
    agent.frozen = true;
    await thawLeftover({ socketPath, clock: systemClock });
    expect(agent.frozen).toBe(false);
    agent.commands.length = 0;
    await thawLeftover({ socketPath, clock: systemClock });
    expect(agent.commands).toEqual(["guest-sync-delimited", "guest-fsfreeze-status"]);
    await thawLeftover({ socketPath: `${socketPath}-gone`, clock: systemClock });
  });
});
