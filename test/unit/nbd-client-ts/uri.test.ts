import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatNbdUri, NbdError, parseNbdUri, type NbdUri } from "nbd-client-ts";

describe("parseNbdUri", () => {
  const uris: readonly [uri: string, parts: NbdUri][] = [
    ["nbd://example.com", { host: "example.com", port: 10809, exportName: "" }],
    ["nbd://example.com/", { host: "example.com", port: 10809, exportName: "" }],
    ["nbd://example.com:/disk", { host: "example.com", port: 10809, exportName: "disk" }],
    ["NBD://example.com:1/disk", { host: "example.com", port: 1, exportName: "disk" }],
    ["nbd://example.com//disk", { host: "example.com", port: 10809, exportName: "/disk" }],
    ["nbd://h/a/../b/./c", { host: "h", port: 10809, exportName: "a/../b/./c" }],
    ["nbd://h/hello%20world+%C3%A9%3F", { host: "h", port: 10809, exportName: "hello world+é?" }],
    ["nbd://[::1]:10810/d", { host: "::1", port: 10810, exportName: "d" }],
    ["nbd://[fe80::1%25eth0]/", { host: "fe80::1%eth0", port: 10809, exportName: "" }],
    ["nbd+unix:///?socket=/run/s%26", { socketPath: "/run/s&", exportName: "" }],
    ["nbd+unix:///disk?socket=nbd.sock", { socketPath: "nbd.sock", exportName: "disk" }],
    ["nbd+unix:///?socket=%00/abstract", { socketPath: "\0/abstract", exportName: "" }],
    ["nbds://h/", { host: "h", port: 10809, exportName: "", tls: {} }],
    [
      "nbds://h/?tls-type=x509&tls-certificates=/etc/pki&tls-hostname=other&tls-verify-peer=0",
      {
        host: "h",
        port: 10809,
        exportName: "",
        tls: { certificates: "/etc/pki", hostname: "other", verifyPeer: false },
      },
    ],
    [
      "nbds+unix://al%40ice@/d?socket=/s&tls-psk-file=/keys&tls-type=psk",
      { socketPath: "/s", exportName: "d", tls: { pskFile: "/keys", username: "al@ice" } },
    ],
  ];

  it.each(uris)("reads %s", (uri, parts) => {
    expect(parseNbdUri(uri)).toEqual(parts);
  });

  const malformed: readonly [why: string, uri: string][] = [
    ["no URI", "/run/nbd.sock"],
    ["another scheme", "http://h/"],
    ["an unknown transport", "nbd+vsock://2/"],
    ["QEMU's old form", "nbd:localhost:10809"],
    ["QEMU's old form for a socket", "nbd:unix:/s:exportname=x"],
    ["a fragment", "nbd://h/a#b"],
    ["a space", "nbd://h/a b"],
    ["a letter that is not ASCII", "nbd://h/é"],
    ["a broken escape", "nbd://h/%4"],
    ["an escape that is not UTF-8", "nbd://h/%ff"],
    ["NUL in the export's name", "nbd://h/a%00b"],
    ["no host", "nbd:///disk"],
    ["brackets without an address", "nbd://[h]/"],
    ["an address without brackets", "nbd://::1/"],
    ["a port that is none", "nbd://h:x/"],
    ["port 0", "nbd://h:0/"],
    ["a port that is too high", "nbd://h:65536/"],
    ["a socket over TCP", "nbd://h/?socket=/s"],
    ["no socket", "nbd+unix:///disk"],
    ["an empty socket", "nbd+unix:///disk?socket="],
    ["NUL within the socket", "nbd+unix:///disk?socket=/a%00b"],
    ["a host beside a socket", "nbd+unix://h/disk?socket=/s"],
    ["an unknown parameter", "nbd://h/?x-mine=1"],
    ["a parameter twice", "nbd+unix:///?socket=/a&socket=/b"],
    ["a parameter twice, escaped the second time", "nbd+unix:///?socket=/a&%73ocket=/b"],
    ["a parameter without a value", "nbds://h/?tls-hostname"],
    ["a parameter with an empty value", "nbds://h/?tls-hostname="],
    ["an empty parameter", "nbd+unix:///?socket=/a&"],
    ["a password", "nbds://alice:secret@h/?tls-psk-file=/f"],
    ["an empty user", "nbds://@h/?tls-psk-file=/f"],
    ["a user without TLS", "nbd://alice@h/"],
    ["a user without a file of keys", "nbds://alice@h/"],
    ["a parameter for TLS without TLS", "nbd://h/?tls-verify-peer=1"],
    ["certificates without TLS", "nbd+unix:///?socket=/s&tls-certificates=/c"],
    ["a truth that is none", "nbds://h/?tls-verify-peer=yes"],
    ["anonymous TLS", "nbds://h/?tls-type=anon"],
    ["PSK without keys", "nbds://h/?tls-type=psk"],
    ["x509 with a file of keys", "nbds://h/?tls-type=x509&tls-psk-file=/f"],
    ["certificates and keys", "nbds://h/?tls-certificates=/c&tls-psk-file=/f"],
  ];

  it.each(malformed)("refuses %s", (_why, uri) => {
    expect(() => parseNbdUri(uri)).toThrow(expect.objectContaining({ code: "INVALID_URI", scope: "usage" }));
  });

  it("keeps a password out of the error", () => {
    expect(() => parseNbdUri("nbds://alice:secret@h/")).toThrow(/^(?!.*secret)/);
  });

  it("reads anything or throws INVALID_URI", () => {
    const part = fc.constantFrom(
      "nbd",
      "s",
      "+unix",
      "://",
      "[::1]",
      "@",
      ":",
      "/",
      "?",
      "&",
      "=",
      "socket",
      "%00",
    );
    const text = fc.array(fc.oneof(part, fc.string({ maxLength: 3 })), { maxLength: 12 });
    fc.assert(
      fc.property(text, (parts) => {
        try {
          parseNbdUri(parts.join(""));
        } catch (error) {
          expect(error).toBeInstanceOf(NbdError);
          expect(error).toMatchObject({ code: "INVALID_URI" });
        }
      }),
      { numRuns: 1000 },
    );
  });
});

describe("formatNbdUri", () => {
  const text = fc
    .string({ unit: "grapheme", minLength: 1, maxLength: 20 })
    .filter((each) => !each.includes("\0"));
  const place = fc.oneof(
    fc.record({
      host: fc.oneof(fc.domain(), fc.ipV4(), fc.ipV6()),
      port: fc.integer({ min: 1, max: 65535 }),
    }),
    fc.record({ socketPath: text }),
  );
  const certificates = fc.record(
    { certificates: text, hostname: text, verifyPeer: fc.boolean() },
    { requiredKeys: [] },
  );
  const keys = fc.record({ pskFile: text, username: text, hostname: text }, { requiredKeys: ["pskFile"] });
  const tls = fc.option(fc.record({ tls: fc.oneof(certificates, keys) }));

  it("writes what parseNbdUri reads as the same", () => {
    fc.assert(
      fc.property(fc.oneof(text, fc.constant("")), place, tls, (exportName, where, how) => {
        const parts: NbdUri = { exportName, ...where, ...how };
        expect(parseNbdUri(formatNbdUri(parts))).toEqual(parts);
      }),
      { numRuns: 500 },
    );
  });

  it("writes readable paths", () => {
    expect(formatNbdUri({ exportName: "a/b c", socketPath: "/run/nbd.sock" })).toBe(
      "nbd+unix:///a/b%20c?socket=/run/nbd.sock",
    );
  });

  it.each<[string, NbdUri]>([
    ["a host that is none", { exportName: "", host: "", port: 1 }],
    ["a port that is none", { exportName: "", host: "h", port: 1.5 }],
    ["text that is not Unicode", { exportName: "\ud800", host: "h" }],
    ["neither host nor socket", { exportName: "" }],
  ])("refuses %s", (_what, parts) => {
    expect(() => formatNbdUri(parts)).toThrow(expect.objectContaining({ code: "INVALID_URI" }));
  });
});
