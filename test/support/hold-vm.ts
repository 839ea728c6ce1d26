import { TestVm } from "./vm.js";

/** Starts a VM in the given directory, prints its pid and waits: for tests that kill this process. */
const [directory = "/tmp"] = process.argv.slice(2);
const vm = await TestVm.start({ directory, disks: [] });
process.stdout.write(`${vm.pid}\n`);
await vm.waitForEnd();
