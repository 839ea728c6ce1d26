import protobuf from "protobufjs";
import { describe, expect, it } from "vitest";
import type { CallName } from "../../../src/api/call-types.js";
import { CALLS, runCall } from "../../../src/api/calls.js";
import { protoRoot } from "../../../src/api/proto.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const methods = (protoRoot().lookup("fleece.v1") as protobuf.Namespace).nestedArray
  .filter((item): item is protobuf.Service => item instanceof protobuf.Service)
  .flatMap((service) =>
    service.methodsArray.map((method) => ({ name: `${service.name}.${method.name}`, method })),
  );

describe("the table of calls", () => {
  it("has every method of the .proto files, and nothing else", () => {
    expect(methods.length).toBeGreaterThan(15);
    expect(Object.keys(CALLS).toSorted()).toEqual(methods.map(({ name }) => name).toSorted());
  });

  it.each(methods)(
    "says of $name what its request has, and that a viewer changes nothing",
    ({ name, method }) => {
      const { names, role, mutates } = CALLS[name as CallName];
      const { fields } = method.resolvedRequestType ?? {};
      for (const field of Object.keys(names))
        expect(fields?.[field]).toMatchObject({ type: "string", repeated: false });
      expect(mutates).toBe(role !== "viewer");
    },
  );

  it("has an id for each request that changes something", () => {
    for (const { name, method } of methods) {
      const id = method.resolvedRequestType?.fields["requestId"]?.id;
      expect({ name, id }).toEqual({ name, id: CALLS[name as CallName].mutates ? 15 : undefined });
    }
  });
});

describe("runCall", () => {
  it("refuses an empty name before anything is done, and says which field", async () => {
    const { path } = await temporaryDirectory();
    const { context } = new FakeWorld(path, { disks: [{ target: "vda", sizeBytes: 65_536 }] }).process();
    await expect(runCall(context, "Checkpoints.Get", { domain: "vm", name: "" })).rejects.toMatchObject({
      code: "INVALID_NAME",
      facts: { field: "name" },
    });
  });
});
