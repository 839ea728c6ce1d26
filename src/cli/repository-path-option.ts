import { Option } from "@commander-js/extra-typings";

/** Beside it, for commands that read content. */
export const KEY_FILE_OPTION = new Option(
  "--key-file <file>",
  "with --repository-path: the key of an encrypted repository",
);

/** Of commands that need nothing but the backups themselves. */
export const REPOSITORY_PATH_OPTION = new Option(
  "--repository-path <directory>",
  "read the repository in this directory, without agent and configuration",
);

/** Of commands on a backup by its id, which its copies have, too. */
export const REPOSITORY_OPTION = new Option(
  "--repository <name>",
  "the repository that has it (default: the first that does)",
);

/** Of those that would be wrong on another one. */
export const ONLY_REPOSITORY_OPTION = new Option(
  "--repository <name>",
  "the repository that has it; needed if copies of it are in others",
);
