import { pino } from "pino";
import { StreamAdapter, type TextStream } from "./streams.js";

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "silent"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Logs go to stderr: lines for people on a terminal, else one JSON object per line. Nothing is buffered. */
export async function createLogger(level: LogLevel, stderr: TextStream): Promise<pino.Logger> {
  const options: pino.LoggerOptions = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
  };
  if (stderr.isTTY !== true) return pino(options, { write: (line) => void stderr.write(line) });
  // Loaded only here: it takes longer than many a command.
  const { PinoPretty } = await import("pino-pretty");
  return pino(
    options,
    PinoPretty({
      destination: new StreamAdapter(stderr),
      colorize: useColours(),
      translateTime: "SYS:HH:MM:ss.l",
    }),
  );
}

/** https://no-color.org */
export function useColours(): boolean {
  return (process.env["NO_COLOR"] ?? "") === "";
}
