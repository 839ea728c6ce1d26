import type { DriverHarness } from "../../contract/block-driver.js";
import { describeBlockDriver } from "../../contract/block-driver.js";
import { FakeDomain } from "../../support/fake-domain.js";

const MIB = 1024 * 1024;

function harness(running: boolean): () => Promise<DriverHarness> {
  return () => {
    const domain = new FakeDomain(
      [
        { target: "vda", sizeBytes: 2 * MIB + 512 },
        { target: "sdb", sizeBytes: MIB + 35 * 512 },
        // Like the real inactive driver, without a bitmap there.
        ...(running ? [{ target: "hdc", format: "raw", sizeBytes: MIB + 4096 + 512 } as const] : []),
      ],
      { running },
    );
    return Promise.resolve({
      scratchDir: "/scratch",
      host: domain.host,
      readers: domain.readers,
      driver: () => domain.open("vm"),
      write: (target, offset, length, pattern) => {
        domain.write(target, offset, length, pattern);
        return Promise.resolve();
      },
      zero: (target, offset, length) => {
        domain.write(target, offset, length, 0);
        return Promise.resolve();
      },
      traces: () => Promise.resolve(domain.traces()),
      [Symbol.asyncDispose]: () => Promise.resolve(),
    });
  };
}

describeBlockDriver("the in-memory fake of a running QEMU", harness(true));
describeBlockDriver("the in-memory fake of an inactive domain", harness(false));
