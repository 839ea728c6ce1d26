/** Loaded into the built command by `--import`: its clock is so many milliseconds ahead. The command itself knows nothing of this. */
const aheadMs = Number(process.env["FLEECE_TEST_AHEAD_MS"] ?? 0);
const now = Date.now.bind(Date);
Date.now = () => now() + aheadMs;
