import { describe, expect, it } from "vitest";
import { isInvalid, kindOfVolume, parseLvsReport } from "../../../../src/drivers/lvm/lvs-report.js";

const line = {
  vg_name: "vg",
  lv_name: "root-s1",
  lv_attr: "sri-a-s---",
  lv_tags: "fleece:k3j9ab00,nightly",
  lv_active: "active",
  lv_kernel_major: "253",
  lv_kernel_minor: "8",
  snap_percent: "14.77",
  vg_free: "1862270976",
};

function parse(...changes: readonly Partial<typeof line>[]) {
  return parseLvsReport(JSON.stringify({ report: [{ lv: changes.map((each) => ({ ...line, ...each })) }] }));
}

describe("parseLvsReport", () => {
  it("reads names, tags, devices and what is used", () => {
    expect(
      parse(
        {},
        { lv_active: "", lv_kernel_major: "-1", lv_kernel_minor: "-1", lv_tags: "", snap_percent: "" },
      ),
    ).toEqual([
      {
        ...{ group: "vg", name: "root-s1", attributes: "sri-a-s---", tags: ["fleece:k3j9ab00", "nightly"] },
        ...{ device: { major: 253, minor: 8 }, usedPercent: 14.77, freeBytes: 1_862_270_976 },
      },
      { group: "vg", name: "root-s1", attributes: "sri-a-s---", tags: [], freeBytes: 1_862_270_976 },
    ]);
  });

  it.each(["", "{}", '{"report":[]}', '{"report":[{"lv":[{"lv_name":"a"}]}]}'])("refuses %s", (text) => {
    expect(() => parseLvsReport(text)).toThrow(expect.objectContaining({ code: "LVM_FAILED" }));
  });

  // As lvs of LVM 2.03.16 has printed them.
  it.each([
    ["-wi-a-----", "classic", false],
    ["owi-aos---", "classic", false],
    ["Vwi-a-tz--", "thin", false],
    ["twi-aotz--", undefined, false],
    ["sri-a-s---", undefined, false],
    ["swi-I-s---", undefined, true],
  ] as const)("knows %s", (attributes, kind, invalid) => {
    const [volume] = parse({ lv_attr: attributes });
    expect(volume && [kindOfVolume(volume), isInvalid(volume)]).toEqual([kind, invalid]);
  });
});
