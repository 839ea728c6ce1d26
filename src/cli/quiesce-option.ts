import { Option } from "@commander-js/extra-typings";

/** Both are optional: without them the configuration decides. */
export const QUIESCE_OPTION = new Option(
  "--quiesce",
  "freeze the guest's file systems for the moment, through its agent (default: as configured)",
);
export const NO_QUIESCE_OPTION = new Option("--no-quiesce", "do not, whatever is configured");
