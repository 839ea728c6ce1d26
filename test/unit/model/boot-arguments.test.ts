import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { bootArguments, type BootPlan } from "../../../src/model/boot-arguments.js";
import { consoleSign } from "../../../src/model/boot-test.js";

const PROGRAM = "qemu-system-x86_64";
const DISK = ["-drive", "file=/vm/vda.qcow2,if=virtio,format=qcow2"];
const OVERLAY = "file=/scratch/o.qcow2,if=virtio,format=qcow2";
const PLAN: BootPlan = {
  cwd: "/vm",
  disks: [{ target: "vda", files: ["/vm/vda.qcow2", "/vm/vda"], overlay: "/scratch/o.qcow2" }],
  copies: new Map([["/vm/vars.fd", "/scratch/machine/vars"]]),
  memoryBytes: undefined,
  accelerator: "tcg",
  agentSocket: undefined,
};
const SAFE_END = [
  ...["-accel", "tcg", "-no-user-config", "-no-reboot", "-nic", "none", "-display", "none"],
  ...["-monitor", "none", "-parallel", "none"],
];
const CONSOLE = ["-chardev", "stdio,id=fleece-console,signal=off"];
const SERIAL = [...CONSOLE, "-serial", "chardev:fleece-console"];

/** What becomes of further arguments beside those of the disk. */
function made(args: readonly string[], changes: Partial<BootPlan> = {}): string[] {
  const [program, , drive, ...rest] = bootArguments([PROGRAM, ...DISK, ...args], { ...PLAN, ...changes });
  expect([program, drive]).toEqual([PROGRAM, OVERLAY]);
  return rest;
}

describe("bootArguments", () => {
  it("gives the disk its overlay, whatever the domain calls the file", () => {
    expect(made([])).toEqual([...SAFE_END, ...SERIAL]);
    const bare = bootArguments([PROGRAM, "-drive", "file=vda,if=virtio,format=raw"], PLAN);
    expect(bare.slice(0, 3)).toEqual([PROGRAM, "-drive", OVERLAY]);
    expect(() => bootArguments([PROGRAM, "-drive", "file=/vm/other,format=raw"], PLAN)).toThrow(
      /names no image/,
    );
  });

  it.each([
    [
      "networks",
      [
        "-netdev",
        "tap,id=n,ifname=tap0",
        "-device",
        "virtio-net-pci,netdev=n",
        "-nic",
        "user",
        "-net",
        "nic",
      ],
    ],
    ["network cards by themselves", ["-device", "e1000", "-device", '{"driver":"virtio-net-pci","id":"x"}']],
    [
      "monitors and displays",
      ["-qmp", "unix:/q,server=on", "-mon", "chardev=c", "-vnc", ":0", "-spice", "port=1", "-nographic"],
    ],
    [
      "passed-through devices",
      [
        "-device",
        "vfio-pci,host=01:00.0",
        "-device",
        "usb-host,hostbus=1",
        "-device",
        "vhost-vsock-pci,guest-cid=3",
      ],
    ],
    [
      "other memory",
      [
        "-object",
        "memory-backend-file,id=m,mem-path=/dev/hugepages,size=1G,share=on",
        "-numa",
        "node,memdev=m",
        "-mem-path",
        "/x",
      ],
    ],
    [
      "other disks and their devices",
      ["-drive", "file=/vm/b.raw,if=none,id=b", "-device", "scsi-hd,drive=b"],
    ],
    [
      "disks of the host",
      [
        "-blockdev",
        '{"driver":"host_device","filename":"/dev/sda","node-name":"h","read-only":true}',
        "-device",
        "scsi-hd,drive=h",
      ],
    ],
    [
      "disks over the network",
      ["-drive", "file=nbd://host/x,readonly=on,if=none,id=r", "-drive", "file=rbd:pool/x,media=cdrom"],
    ],
    [
      "TPM, sound, shared directories",
      [
        "-tpmdev",
        "emulator,id=t,chardev=c",
        "-device",
        "tpm-tis,tpmdev=t",
        "-virtfs",
        "local,path=/",
        "-fsdev",
        "local,id=f,path=/",
        "-device",
        "virtio-9p-pci,fsdev=f,mount_tag=x",
        "-audiodev",
        "pa,id=a",
        "-device",
        "hda-duplex,audiodev=a",
      ],
    ],
    [
      "what hangs on a device that is left out",
      ["-device", "vhost-scsi-pci,id=s", "-device", "scsi-hd,bus=s.0"],
    ],
    [
      "how it was started",
      [
        "-S",
        "-daemonize",
        "-pidfile",
        "/p",
        "-incoming",
        "defer",
        "-loadvm",
        "x",
        "-runas",
        "qemu",
        "-D",
        "/log",
        "-readconfig",
        "/c",
      ],
    ],
    ["options that nobody knows", ["-new-option", "to=host"]],
  ])("leaves out %s", (_, args) => {
    expect(made(args)).toEqual([...SAFE_END, ...SERIAL]);
  });

  it("keeps what says what the machine is, and plain memory", () => {
    const kept = [
      "-smp",
      "2",
      "-nodefaults",
      "-device",
      "virtio-rng-pci,rng=r",
      "-object",
      "rng-builtin,id=r",
      "-kernel",
      "/k",
    ];
    expect(made(kept)).toEqual([...kept, ...SAFE_END, ...SERIAL]);
    const machine = [
      "-machine",
      "pc-q35-7.2,accel=kvm,memory-backend=m,usb=off,dumpdtb=/x",
      "-m",
      "4G,slots=4,maxmem=8G",
      "-cpu",
      "host,+vmx",
    ];
    const plain = ["-machine", "pc-q35-7.2,usb=off", "-m", "4G", "-cpu", "max"];
    expect(made(machine)).toEqual([...plain, ...SAFE_END, ...SERIAL]);
    const small = made(machine, { memoryBytes: 512 * 2 ** 20, accelerator: "kvm" });
    expect(small).toEqual(expect.arrayContaining(["host,+vmx", "kvm", "512M"]));
    expect(small).not.toContain("4G");
  });

  it("opens firmware for reading alone, and variables as a copy or not at all", () => {
    const node = (name: string, file: string, readOnly: boolean): string[] => [
      ...[
        "-blockdev",
        JSON.stringify({ driver: "file", filename: file, "node-name": name, "read-only": readOnly }),
      ],
      ...[
        "-blockdev",
        JSON.stringify({ driver: "raw", file: name, "node-name": `${name}-format`, "read-only": readOnly }),
      ],
    ];
    const code = node("code", "/usr/share/OVMF/CODE.fd", true);
    const machine = ["-machine", "q35,pflash0=code-format,pflash1=vars-format"];
    const known = made([...code, ...node("vars", "/vm/vars.fd", false), ...machine]);
    const copied = node("vars", "/scratch/machine/vars", false);
    expect(known).toEqual([...code, ...copied, ...machine, ...SAFE_END, ...SERIAL]);
    const unknown = made([...code, ...node("vars", "/other/vars.fd", false), ...machine]);
    expect(unknown).toEqual([...code, "-machine", "q35,pflash0=code-format", ...SAFE_END, ...SERIAL]);
  });

  it("takes the first serial port as the console, and the agent's port for the agent", () => {
    const ports = [
      ...["-chardev", "socket,id=c0,path=/s,server=on", "-device", "isa-serial,chardev=c0,id=serial0"],
      ...["-chardev", "socket,id=c1,path=/a,server=on", "-device", "virtio-serial-pci,id=vs"],
      ...[
        "-device",
        '{"driver":"virtserialport","chardev":"c1","name":"org.qemu.guest_agent.0","bus":"vs.0"}',
      ],
    ];
    const agentSocket = "/run/a,b.sock";
    expect(made(ports, { agentSocket })).toEqual([
      ...["-chardev", "null,id=c0", "-device", "isa-serial,id=serial0,chardev=fleece-console"],
      ...["-chardev", "null,id=c1", "-device", "virtio-serial-pci,id=vs"],
      ...[
        "-device",
        '{"driver":"virtserialport","chardev":"fleece-agent","name":"org.qemu.guest_agent.0","bus":"vs.0"}',
      ],
      ...SAFE_END,
      ...CONSOLE,
      ...["-chardev", "socket,id=fleece-agent,path=/run/a,,b.sock,server=on,wait=off"],
    ]);
    expect(() => made([], { agentSocket })).toThrow(/no port for the guest agent/);
  });

  it("lets nothing through that names the host, whatever the order and the form of options is", () => {
    const ends = fc.constantFrom(
      ...[
        "-netdev tap,id=n",
        "-chardev socket,id=c,path=/host/s",
        "-serial tcp::1",
        "-object secret,id=s,file=/host/k",
      ],
      ...["-device virtio-net-pci,netdev=n", "-device vfio-pci,host=1", "-device isa-serial,chardev=c"],
      ...[
        "-drive file=/host/x,if=none,id=d",
        "-device scsi-hd,drive=d",
        "--vnc :1",
        "-gdb tcp::2",
        "-nodefaults",
      ],
    );
    fc.assert(
      fc.property(fc.array(ends), (chosen) => {
        const text = made(chosen.flatMap((each) => each.split(" "))).join(" ");
        expect(text).not.toMatch(/\/host|tcp:|netdev|vfio|:1|drive=d/);
        expect(text).toContain("-nic none");
      }),
    );
  });
});

describe("consoleSign", () => {
  it("takes text as it is, and an expression between slashes", () => {
    const shows = (sign: string, text: string): boolean => {
      const made = consoleSign(sign);
      return made.kind === "console" && made.pattern.test(text);
    };
    expect(shows("a.b (1)", "x a.b (1) y")).toBe(true);
    expect(shows("a.b", "axb")).toBe(false);
    expect(shows("/^web\\d+ login: $/", "boot\nweb01 login: ")).toBe(true);
    expect(() => consoleSign("/(/")).toThrow(SyntaxError);
  });
});
