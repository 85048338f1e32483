/** Reads the files of cgroups: words, or lines of `key number`. One that is not there has none. */
import { readFileSync } from 'node:fs';

export const textOf = (path: string | undefined): string => {
  try {
    return path === undefined ? '' : readFileSync(path, 'utf8');
  } catch {
    return '';
  }
};

export const words = (path: string): string[] => textOf(path).trim().split(/\s+/);

/** The number in the line of `key` of a file of `key number` lines. */
export const pick = (text: string, key: string): number | null => {
  const found = new RegExp(`^${key} (\\d+)$`, 'm').exec(text)?.[1];
  return found === undefined ? null : Number(found);
};
