import { Writable } from "node:stream";
import { pino } from "pino";
import { PinoPretty } from "pino-pretty";
import type { TextStream } from "./streams.js";

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "silent"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Logs go to stderr: lines for people on a terminal, else one JSON object per line. Nothing is buffered. */
export function createLogger(level: LogLevel, stderr: TextStream): pino.Logger {
  const options: pino.LoggerOptions = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
  };
  if (stderr.isTTY !== true) return pino(options, { write: (line) => void stderr.write(line) });
  const destination = new Writable({
    write(chunk, _encoding, done) {
      stderr.write(String(chunk));
      done();
    },
  });
  return pino(options, PinoPretty({ destination, colorize: useColours(), translateTime: "SYS:HH:MM:ss.l" }));
}

/** https://no-color.org */
export function useColours(): boolean {
  return (process.env["NO_COLOR"] ?? "") === "";
}
