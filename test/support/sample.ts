/** `npm run test:faults` tries every case; `npm test` a sample. */
export const ALL_FAULTS = process.env["FLEECE_FAULTS"] === "all";

/** All cases, or for `npm test` one in so many. */
export function sampled<T>(cases: readonly T[], every = 2): readonly T[] {
  return ALL_FAULTS ? cases : cases.filter((_, index) => index % every === 0);
}
