import { Option } from "@commander-js/extra-typings";

/** Of commands that need nothing but the backups themselves. */
export const REPOSITORY_PATH_OPTION = new Option(
  "--repository-path <directory>",
  "read the repository in this directory, without agent and configuration",
);
