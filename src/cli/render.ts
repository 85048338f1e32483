/** The only writer to stdout: results. Progress goes to stderr (progress.ts). */
import { writeSync } from 'node:fs';

/**
 * Writes everything before it returns: a process that exits right after must not cut its own output short.
 * A reader that has gone away (EPIPE) is not an error of ours.
 */
const write = (text: string): void => {
  let data = Buffer.from(text);
  while (data.length > 0) {
    try {
      data = data.subarray(writeSync(1, data));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EPIPE') return;
      // stdout is a pipe that Node made non-blocking, and its reader is slow: wait a moment for room.
      if (code === 'EAGAIN') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2);
      else throw error;
    }
  }
};

export const printLine = (text = ''): void => write(`${text}\n`);

/** As it is: the output of a guest. */
export const printRaw = (text: string): void => write(text);

/** One line, for programs. */
export const printJson = (value: unknown): void => write(`${JSON.stringify(value)}\n`);

export const printPrettyJson = (value: unknown): void => write(`${JSON.stringify(value, null, 2)}\n`);

/** `name: value` lines, values aligned; what has no value is left out. */
export const printFacts = (facts: [name: string, value: string | undefined][]): void => {
  const width = Math.max(...facts.map(([name]) => name.length)) + 2;
  for (const [name, value] of facts) if (value !== undefined) printLine(`${`${name}:`.padEnd(width)}${value}`);
};

/** Columns padded to their widest cell; the last one is left as it is. */
export const printTable = (header: string[], rows: string[][]): void => {
  const all = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...all.map((row) => (row[column] ?? '').length)));
  for (const row of all)
    printLine(row.map((cell, c) => (c === header.length - 1 ? cell : cell.padEnd((widths[c] ?? 0) + 2))).join(''));
};

/** Output of a guest as it comes; waits while its reader is slow. False when the reader has gone away. */
export const writeOut = (channel: 'stdout' | 'stderr', data: Uint8Array): Promise<boolean> =>
  new Promise((resolve) => process[channel].write(data, (error) => resolve(!error)));
