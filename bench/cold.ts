/** A cold page cache for some files, whoever runs the bench: posix_fadvise(2) POSIX_FADV_DONTNEED by dd(1), looked after with fincore(1). */
import { execFileSync } from 'node:child_process';

/** Pages that were read a moment ago may be on a processor's own list, and stay the first time. */
const TRIES = 20;
const PAUSE_MS = 50;

/** Drops what the page cache has of the files. Returns the bytes that are cached all the same: somebody maps them, or they are dirty. */
export const evict = async (paths: string[]): Promise<number> => {
  let left = evictOnce(paths);
  for (let i = 1; i < TRIES && left > 0; i++) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    left = evictOnce(paths);
  }
  return left;
};

const evictOnce = (paths: string[]): number => {
  for (const path of paths) {
    execFileSync('sync', [path]);
    execFileSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0', 'status=none']);
  }
  const left = execFileSync('fincore', ['--bytes', '--noheadings', '--output', 'RES', ...paths], { encoding: 'utf8' });
  return left.split('\n').reduce((sum, line) => sum + Number(line), 0);
};
