import { describe, expect, it } from "vitest";
import { machineEnds } from "../../../src/model/machine-ends.js";

const ends = (...args: string[]) => machineEnds(["qemu", ...args], "/run/vm");

describe("machineEnds", () => {
  it.each([
    [["-qmp", "unix:/run/q,,1,server=on,wait=off"], "/run/q,1"],
    [["-monitor", "unix:hmp.sock,server,nowait"], "/run/vm/hmp.sock"],
    [["-chardev", "socket,id=c,path=/run/c,server=yes"], "/run/c"],
    [["-vnc", "unix:/run/vnc"], "/run/vnc"],
    [["-pidfile", "pid"], "/run/vm/pid"],
  ])("finds what %j listens on", (args, path) => {
    expect(ends(...args)).toEqual({ paths: [path], exclusive: [], inherited: [] });
  });

  it.each([
    [["-chardev", "socket,id=c,path=/run/c"]],
    [["-serial", "stdio"]],
    [["-vnc", "none"]],
    [["-netdev", "user,id=n"]],
    [["-object", "memory-backend-file,id=m,mem-path=/dev/shm/x"]],
    [["-append", "root=/dev/vda fd=3"]],
    [["-name", "guest=a,process=b"]],
  ])("finds nothing in the way in %j", (args) => {
    expect(ends(...args)).toEqual({ paths: [], exclusive: [], inherited: [] });
  });

  it.each([
    [["-vnc", ":0"]],
    [["-s"]],
    [["-gdb", "tcp::1234"]],
    [["-serial", "tcp::4444,server=on,wait=off"]],
    [["-chardev", "socket,id=c,host=0.0.0.0,port=1,server=on"]],
    [["-netdev", "user,id=n,hostfwd=tcp::2222-:22"]],
    [["-netdev", "tap,id=n,ifname=tap0"]],
    [["-device", "vfio-pci,host=01:00.0"]],
    [["-object", "memory-backend-file,id=m,mem-path=/dev/shm/x,share=on"]],
  ])("tells that two QEMUs cannot both have %j", (args) => {
    expect(ends(...args).exclusive).toEqual([args.join(" ")]);
  });

  it.each([
    [["-netdev", "tap,id=n,fd=5"]],
    [["-add-fd", "fd=4,set=1"]],
    [["-chardev", "socket,id=c,fd=7,server=on"]],
    [["-blockdev", '{"driver":"file","filename":"/dev/fdset/1"}']],
    [["-netdev", '{"type":"tap","fd":"5","id":"n"}']],
  ])("tells that %j needs what only the former starter had", (args) => {
    expect(ends(...args).inherited).toEqual([args.join(" ")]);
  });
});
