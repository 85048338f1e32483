/** `forkd wp-bench`: can this host copy memory that is in use, and how fast? */
import { closeSync, constants, lstatSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import type { TaskOutput } from '../../contract/task.js';
import { formatBytes, MiB } from '../../contract/units.js';
import type { Pool } from '../pool.js';
import { meminfo } from './resources.js';

export interface WpBenchRequest {
  regionMib: number;
  /** The region is mapped MAP_PRIVATE, as children map an image. */
  isPrivate: boolean;
  /** A thread stores all over the region while it is copied. */
  writer: boolean;
  copiers: number;
  /** Where the copy goes, and stays. Without it: to a file without a name in the temp directory. */
  snapshot?: string;
}

export type WpBenchResult = TaskOutput<'wpBench'> & { bytes: number };

/** Throws WP_UNAVAILABLE, MEMORY_SHORT, DISK_FULL, ARGUMENT_INVALID. */
export const wpBench = async (pool: Pool, request: WpBenchRequest): Promise<WpBenchResult> => {
  const { regionMib, snapshot, ...options } = request;
  const bytes = regionMib * MiB;
  const available = meminfo('MemAvailable');
  if (bytes > available) {
    const reason = `the region is ${formatBytes(bytes)}, ${formatBytes(available)} is available`;
    throw new ForkdError('MEMORY_SHORT', { reason });
  }
  const target = snapshot === undefined ? nameless() : replaced(snapshot);
  try {
    return { bytes, ...(await pool.run('wpBench', { bytes, target, ...options })) };
  } finally {
    closeSync(target);
  }
};

/** Nothing is left of it, however this process ends. */
const nameless = (): number => {
  const dir = mkdtempSync(join(tmpdir(), 'forkd-fork-wp-bench-'));
  try {
    return openSync(join(dir, 'copy'), 'wx+', 0o600);
  } finally {
    rmSync(dir, { recursive: true });
  }
};

/** A plain file of an earlier run gives way; anything else is somebody's. */
const replaced = (path: string): number => {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found && !found.isFile()) {
    const reason = `${path} exists and is not a plain file`;
    throw new ForkdError('ARGUMENT_INVALID', { argument: '--snapshot', reason, command: 'wp-bench' });
  }
  if (found) rmSync(path);
  const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
  return openSync(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
};
