/** Finds QEMU on this host and asks its version. */
import { execFile } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { ForkdError } from '../../contract/errors.js';
import { QemuDriver } from './qemu.js';

export const QEMU = 'qemu-system-x86_64';

/** First executable of that name on PATH, or on another such list, or undefined. */
export const onPath = (name: string, path = process.env['PATH'] ?? '/usr/bin:/bin'): string | undefined =>
  path
    .split(delimiter)
    .filter((dir) => dir !== '')
    .map((dir) => join(dir, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });

/** `7.2.22` of `QEMU emulator version 7.2.22 (Debian ...)`. Throws QEMU_MISSING, VMM_START_FAILED. */
export const findQemu = async (): Promise<QemuDriver> => {
  const file = onPath(QEMU);
  if (!file) throw new ForkdError('QEMU_MISSING');
  try {
    const { stdout } = await promisify(execFile)(file, ['--version'], { timeout: 10_000 });
    const version = /version (\d+(?:\.\d+)+)/.exec(stdout)?.[1];
    if (!version) throw new Error(`cannot read the version in '${stdout.slice(0, 80)}'`);
    return new QemuDriver(file, version);
  } catch (error) {
    throw new ForkdError('VMM_START_FAILED', { reason: error instanceof Error ? error.message : String(error) }, error);
  }
};
