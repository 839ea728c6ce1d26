import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  parseMachineArguments,
  printMachineArguments,
  rewriteArguments,
} from "../../../src/model/machine-arguments.js";
import { parseOptionString, printOptionString } from "../../../src/model/option-string.js";

const PROGRAM = "qemu-system-x86_64";
const disks = [{ target: "vda", files: ["/vm/a,b.raw", "/vm/a1.qcow2"], overlay: "/state/vda,s-r1.qcow2" }];
const rewriting = { disks, cwd: "/vm", incoming: false };

const rewritten = (...args: string[]): string[] => {
  const [program, ...rest] = rewriteArguments([PROGRAM, ...args], rewriting);
  expect([program, rest.pop()]).toEqual([PROGRAM, "-S"]);
  return rest;
};
const disk = ["-hda", "/vm/a1.qcow2"];
const newDisk = ["-drive", "file=/state/vda,,s-r1.qcow2,format=qcow2,index=0,media=disk"];

describe("parseOptionString", () => {
  it("is undone by printing, byte for byte, whatever the commas are", () => {
    const text = fc
      .array(fc.constantFrom(",", "=", "a", "file", ",,"), { maxLength: 12 })
      .map((parts) => parts.join(""));
    fc.assert(
      fc.property(text, (given) => {
        expect(printOptionString(parseOptionString(given))).toBe(given);
      }),
    );
  });

  it("takes two commas for one of the value, counted from the left", () => {
    expect(parseOptionString("socket,path=a,,b,,,server")).toEqual([
      { key: undefined, value: "socket" },
      { key: "path", value: "a,b," },
      { key: undefined, value: "server" },
    ]);
  });
});

/** An argument list that QEMU could be given, with nothing in it that a revert changes. */
const untouched = fc.array(
  fc.oneof(
    fc.constantFrom(["-nodefaults"], ["--nographic"], ["-no-reboot"]),
    fc.tuple(fc.constantFrom("-m", "-device", "--chardev", "-append", "-name", "-drive"), fc.string()),
  ),
  { maxLength: 8 },
);

describe("rewriteArguments", () => {
  it("leaves what it does not mean to change byte for byte where it is", () => {
    fc.assert(
      fc.property(untouched, untouched, (before, after) => {
        const [head, tail] = [before.flat(), after.flat()];
        expect(rewritten(...head, ...disk, ...tail)).toEqual([...head, ...newDisk, ...tail]);
      }),
    );
  });

  it("prints what it has parsed", () => {
    fc.assert(
      fc.property(untouched, (list) => {
        const args = [PROGRAM, ...list.flat()];
        expect(printMachineArguments(parseMachineArguments(args))).toEqual(args);
      }),
    );
  });

  it("gives a nested -blockdev in JSON the overlay and its format, and keeps its other members", () => {
    const [, value = ""] = rewritten(
      "-blockdev",
      '{"driver":"raw","node-name":"f","discard":"unmap","file":{"driver":"host_device","filename":"/vm/a,b.raw","cache":{"direct":true}}}',
    );
    expect(JSON.parse(value)).toEqual({
      driver: "qcow2",
      "node-name": "f",
      discard: "unmap",
      file: { driver: "file", filename: "/state/vda,s-r1.qcow2", cache: { direct: true } },
    });
  });

  it("does the same for the dotted keys of an option string, below a throttle filter too", () => {
    expect(
      rewritten(
        "-blockdev",
        "driver=raw,node-name=f,file.driver=file,file.filename=/vm/a,,b.raw,discard=unmap",
      ),
    ).toEqual([
      "-blockdev",
      "node-name=f,discard=unmap,file.filename=/state/vda,,s-r1.qcow2,file.driver=file,driver=qcow2",
    ]);
    const [, value = ""] = rewritten(
      "-blockdev",
      '{"driver":"throttle","throttle-group":"g","file":{"driver":"qcow2","file":{"driver":"file","filename":"/vm/a1.qcow2"}}}',
    );
    expect(JSON.parse(value)).toMatchObject({
      driver: "throttle",
      file: { driver: "qcow2", file: { filename: "/state/vda,s-r1.qcow2" } },
    });
  });

  it("follows a format node to its protocol node, in either order", () => {
    const protocol = ["-blockdev", "driver=file,node-name=p,filename=a,,b.raw"];
    const format = ["-blockdev", '{"driver":"raw","node-name":"f","file":"p"}'];
    const newProtocol = ["-blockdev", "node-name=p,filename=/state/vda,,s-r1.qcow2,driver=file"];
    const newFormat = ["-blockdev", '{"driver":"qcow2","node-name":"f","file":"p"}'];
    expect(rewritten(...protocol, ...format)).toEqual([...newProtocol, ...newFormat]);
    expect(rewritten(...format, ...protocol)).toEqual([...newFormat, ...newProtocol]);
  });

  it("puts a format above a protocol node that a device uses directly", () => {
    const [, value = ""] = rewritten(
      "-blockdev",
      '{"driver":"file","node-name":"d","filename":"/vm/a,b.raw"}',
    );
    expect(JSON.parse(value)).toEqual({
      driver: "qcow2",
      "node-name": "d",
      file: { driver: "file", filename: "/state/vda,s-r1.qcow2" },
    });
  });

  it("replaces a -drive's file and format, and -hda by a -drive", () => {
    expect(rewritten("-drive", "file=/vm/a,,b.raw,format=raw,if=none,id=d")).toEqual([
      "-drive",
      "file=/state/vda,,s-r1.qcow2,if=none,id=d,format=qcow2",
    ]);
    expect(rewritten("-hda", "a1.qcow2")).toEqual(newDisk);
    expect(rewritten("a1.qcow2")).toEqual(newDisk);
  });

  it("drops how an earlier start began, and says how this one does", () => {
    const args = ["-S", "-incoming", "fd:3", "-loadvm", "x", "-daemonize", "-m", "64", ...disk];
    expect(rewriteArguments([PROGRAM, ...args], { ...rewriting, incoming: true })).toEqual([
      PROGRAM,
      "-m",
      "64",
      ...newDisk,
      "-S",
      "-incoming",
      "defer",
    ]);
  });

  it.each([
    [
      ["-machine", "q35,accel=tcg"],
      ["-machine", "pc-q35-7.2,accel=tcg"],
    ],
    [
      ["-M", "accel=tcg,type=q35"],
      ["-M", "accel=tcg,type=pc-q35-7.2"],
    ],
    [
      ["-machine", "smm=off"],
      ["-machine", "smm=off", "-machine", "pc-q35-7.2"],
    ],
    [[], ["-machine", "pc-q35-7.2"]],
  ])("fixes the machine type in %j", (given, expected) => {
    const args = rewriteArguments([PROGRAM, ...given], {
      disks: [],
      cwd: "/",
      machineType: "pc-q35-7.2",
      incoming: false,
    });
    expect(args).toEqual([PROGRAM, ...expected, "-S"]);
  });

  it.each([
    ["a disk that is not there", ["-m", "64"], /no image of these disks: vda/],
    ["a disk that is there twice", [...disk, "-hdb", "/vm/a,b.raw"], /twice/],
    ["-snapshot", [...disk, "-snapshot"], /-snapshot/],
    ["a drive's snapshot=on", ["-drive", "file=a1.qcow2,snapshot=on"], /`snapshot`/],
    [
      "a backing file of its own",
      ["-blockdev", '{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"/vm/a1.qcow2"}}'],
      /`backing`/,
    ],
    [
      "an image that is a backing file",
      ["-blockdev", "driver=qcow2,file.filename=/x,backing.driver=qcow2,backing.file.filename=/vm/a1.qcow2"],
      /backing file of another/,
    ],
    [
      "a part of a raw file",
      ["-blockdev", "driver=raw,offset=512,file.driver=file,file.filename=/vm/a1.qcow2"],
      /`offset`/,
    ],
    [
      "another format",
      ["-blockdev", "driver=luks,file.driver=file,file.filename=/vm/a1.qcow2"],
      /below luks/,
    ],
    ["a value that is missing", [...disk, "-m"], /value after -m/],
  ])("refuses %s", (_, args, words) => {
    expect(() => rewriteArguments([PROGRAM, ...args], rewriting)).toThrow(words);
  });
});
