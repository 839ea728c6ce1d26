import * as z from "zod";
import { FleeceError } from "../../shared/errors.js";

/** A logical volume, as `lvs` shows it. */
export interface LvsVolume {
  readonly group: string;
  readonly name: string;
  /** See lvs(8): the type comes first, the state fifth. */
  readonly attributes: string;
  readonly tags: readonly string[];
  /** Of the device, if it is active. */
  readonly device?: { readonly major: number; readonly minor: number };
  /** Of a classic snapshot's space. */
  readonly usedPercent?: number;
  /** Of the group, in bytes. */
  readonly freeBytes: number;
}

/** One line for each volume: fields of segments would give several. */
export const LVS_ARGUMENTS = [
  ...["--reportformat", "json", "--units", "b", "--nosuffix", "--options"],
  "vg_name,lv_name,lv_attr,lv_tags,lv_active,lv_kernel_major,lv_kernel_minor,snap_percent,vg_free",
];

const count = z
  .string()
  .regex(/^-?\d+$/)
  .transform(Number);

const reportSchema = z.object({
  report: z.tuple([
    z.object({
      lv: z.array(
        z.object({
          vg_name: z.string(),
          lv_name: z.string(),
          lv_attr: z.string().min(5),
          lv_tags: z.string(),
          lv_active: z.string(),
          lv_kernel_major: count,
          lv_kernel_minor: count,
          snap_percent: z.string(),
          vg_free: count,
        }),
      ),
    }),
  ]),
});

/** Fails with LVM_FAILED. */
export function parseLvsReport(text: string): readonly LvsVolume[] {
  let lines: z.infer<typeof reportSchema>["report"][0]["lv"];
  try {
    lines = reportSchema.parse(JSON.parse(text)).report[0].lv;
  } catch (cause) {
    throw new FleeceError("LVM_FAILED", "Expected a report of logical volumes from lvs, got something else", {
      cause,
    });
  }
  return lines.map((line) => ({
    group: line.vg_name,
    name: line.lv_name,
    attributes: line.lv_attr,
    tags: line.lv_tags === "" ? [] : line.lv_tags.split(","),
    // Without a device both numbers are -1.
    ...(line.lv_active === "active" && line.lv_kernel_major >= 0
      ? { device: { major: line.lv_kernel_major, minor: line.lv_kernel_minor } }
      : {}),
    ...(line.snap_percent === "" ? {} : { usedPercent: Number(line.snap_percent) }),
    freeBytes: line.vg_free,
  }));
}

/** Undefined of volumes that LVM takes no snapshots of: pools, snapshots themselves, parts of other volumes. */
export function kindOfVolume({ attributes }: LvsVolume): "thin" | "classic" | undefined {
  const type = attributes.charAt(0);
  if (type === "V") return "thin";
  return "-oCmMrR".includes(type) ? "classic" : undefined;
}

/** Its space was used up, or a merge into its origin has failed. */
export function isInvalid({ attributes }: LvsVolume): boolean {
  return "ISmM".includes(attributes.charAt(4));
}
