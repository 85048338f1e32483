/** Checks of files and directories: the guest image, the store, and room for both. */
import { SOCKET_PATH_MAX } from '../../agent/switchboard.js';
import { accessSync, constants, existsSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { errnoOf, reasonOf } from '../../../contract/errors.js';
import { formatBytes, MiB } from '../../../contract/units.js';
import { native } from '../../../native/binding.js';
import { findImage } from '../../image/index.js';
import { cacheDir, dataDir, imagesDir, snapshotsDir, tempDir } from '../../paths.js';
import { Store } from '../../store/store.js';
import { findLeftovers } from '../cleanup.js';
import { findTool, missingImageTools } from '../packages.js';
import { type Check, fail, type Finding, pass, skip, warn } from './check.js';

const GIB = 1024 * MiB;

export const kernelImage: Check = {
  name: 'kernel image',
  run: () => {
    const named = process.env['FORKD_KERNEL'];
    if (named)
      return existsSync(named)
        ? pass(`${named} (FORKD_KERNEL)`)
        : fail(`FORKD_KERNEL names ${named}, which does not exist`);
    const image = findImage(imagesDir());
    return image ? pass(`${image.record.kernelVersion}, of the guest image`) : skip('comes with the guest image');
  },
};

export const imageTools: Check = {
  name: 'guest image tools',
  run: () => {
    const missing = missingImageTools();
    if (missing.length === 0) return pass('apt-get, dpkg-deb, mkfs.ext4 and the others are here');
    const names = missing.map(({ tool }) => tool).join(', ');
    if (findImage(imagesDir())) return skip(`missing: ${names}; the image is built already`);
    if (missing.some(({ tool }) => tool === 'apt-get')) {
      return fail('no apt-get: the guest image is made of Debian packages', {
        hint: 'Use Debian or Ubuntu, or give your own --kernel and --rootfs.',
      });
    }
    const packages = [...new Set(missing.map((one) => one.package))];
    const hint = `apt-get install -y --no-install-recommends ${packages.join(' ')}`;
    return fail(`missing: ${names}`, { hint, fix: { kind: 'packages', packages } });
  },
};

export const guestImage: Check = {
  name: 'guest image',
  run: () => {
    const image = findImage(imagesDir());
    if (image) {
      const bytes = Object.values(image.record.files).reduce((sum, file) => sum + file.bytes, 0);
      return pass(`${image.dir} (Python ${image.record.pythonVersion}, ${formatBytes(bytes)})`);
    }
    if (!findTool('apt-get')) return warn('not built, and cannot be built without apt-get');
    return warn('not built yet: the first snapshot builds it', {
      hint: '`forkd doctor --fix` builds it now.',
      fix: { kind: 'image' },
    });
  },
};

/** A build holds packages, tree and disk at once: 400 MiB by measurement. */
const IMAGE_BUILD_LEAST = 512 * MiB;

export const imageCache: Check = {
  name: 'image cache',
  run: () => {
    if (findImage(imagesDir())) return pass(cacheDir());
    return writable(cacheDir(), {
      least: IMAGE_BUILD_LEAST,
      good: GIB,
      hint: 'Free some space, or name another place in FORKD_RUN_CACHE.',
    });
  },
};

export const dataDirectory: Check = {
  name: 'data dir',
  run: () => writable(dataDir(), { hint: 'Name another place in XDG_DATA_HOME.' }),
};

export const snapshotDir: Check = {
  name: 'snapshot dir',
  run: () => {
    if (!existsSync(snapshotsDir())) return skip(`${snapshotsDir()} is made by the first snapshot`);
    const snapshots = new Store(snapshotsDir()).list();
    const damaged = snapshots.filter(({ problem }) => problem !== undefined).map(({ tag }) => tag);
    const detail = `${snapshotsDir()} (${snapshots.length} snapshots)`;
    if (damaged.length === 0) return pass(detail);
    return warn(`${detail}, damaged: ${damaged.join(', ')}`, { hint: `forkd rmi ${damaged.join(' ')}` });
  },
};

export const snapshotSpace: Check = {
  name: 'snapshot dir space',
  run: () =>
    room(snapshotsDir(), {
      least: GIB,
      good: 5 * GIB,
      hint: 'Remove snapshots with `forkd rmi`, or name another place in XDG_DATA_HOME.',
    }),
};

const TEMP_LEAST = 64 * MiB;
const TEMP_GOOD = 512 * MiB;

/** An engine's: work directory, random suffix, socket. */
const LONGEST_SOCKET = '/forkd-engine-agents-XXXXXX/agents.sock';

export const tempDirectory: Check = {
  name: 'temp dir',
  run: () => {
    const dir = tempDir();
    const hint = 'Name another place in TMPDIR.';
    if (!existsSync(dir)) return fail(`${dir} does not exist`, { hint });
    if (dir.length + LONGEST_SOCKET.length > SOCKET_PATH_MAX) {
      return warn(`${dir} is so long that sockets in it cannot be reached`, { hint: 'Name a shorter one in TMPDIR.' });
    }
    return writable(dir, { least: TEMP_LEAST, good: TEMP_GOOD, hint });
  },
};

export const leftovers: Check = {
  name: 'leftovers',
  run: () => {
    const { remove } = findLeftovers();
    if (remove.length === 0) return pass('none');
    const bytes = remove.reduce((sum, one) => sum + one.bytes, 0);
    return warn(`${remove.length} of runs that were killed, ${formatBytes(bytes)}`, { hint: 'forkd cleanup --yes' });
  },
};

interface Demand {
  least?: number;
  good?: number;
  hint: string;
}

/** May this user write there? A directory that does not exist yet is judged by its nearest existing parent. */
const writable = (dir: string, demand: Demand): Finding => {
  const existing = nearest(dir);
  const { hint } = demand;
  if (!statSync(existing).isDirectory()) return fail(`${existing} is not a directory`, { hint });
  try {
    accessSync(existing, constants.W_OK | constants.X_OK);
  } catch (error) {
    return fail(errnoOf(error) === 'EROFS' ? `${existing} is read-only` : `this user may not write to ${existing}`, {
      hint,
    });
  }
  return room(dir, demand);
};

const room = (dir: string, { least = 0, good = 0, hint }: Demand): Finding => {
  const existing = nearest(dir);
  let free: number;
  try {
    free = native.diskSpace(existing).free;
  } catch (error) {
    return warn(`cannot ask for the room in ${existing}: ${reasonOf(error)}`);
  }
  const detail = `${dir}, ${formatBytes(free)} free`;
  if (free < least) return fail(`${detail}: at least ${formatBytes(least)} is needed`, { hint });
  return free < good ? warn(detail, { hint }) : pass(detail);
};

const nearest = (path: string): string => (existsSync(path) || dirname(path) === path ? path : nearest(dirname(path)));
