/** What was learnt about this host and is worth remembering: `<data>/host.json`. Losing it costs time, nothing else. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

type Known = Record<string, unknown>;

const read = (path: string): Known => {
  try {
    const value: unknown = JSON.parse(readFileSync(path, 'utf8'));
    return typeof value === 'object' && value !== null ? (value as Known) : {};
  } catch {
    return {};
  }
};

/** The remembered answer to `question`, which names everything that the answer depends on. */
export const recall = <T>(path: string, question: string): T | undefined => read(path)[question] as T | undefined;

export const remember = (path: string, question: string, answer: unknown): void => {
  mkdirSync(dirname(path), { recursive: true });
  const temporary = `${path}.${process.pid}`;
  writeFileSync(temporary, `${JSON.stringify({ ...read(path), [question]: answer }, null, 2)}\n`);
  renameSync(temporary, path);
};
