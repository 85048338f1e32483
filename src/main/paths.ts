/** Where everything is. The rules are the reference's, so that its users find their files. */
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';

/** `$XDG_DATA_HOME/forkd`, else `$HOME/.local/share/forkd`, else under /tmp. */
export const dataDir = (): string => {
  const xdg = process.env['XDG_DATA_HOME'];
  if (xdg) return join(xdg, 'forkd');
  return join(process.env['HOME'] ? homedir() : '/tmp', '.local/share/forkd');
};

export const snapshotsDir = (): string => join(dataDir(), 'snapshots');

/** Running sandboxes, a file of each engine, so that another command can find them. */
export const sandboxesDir = (): string => join(dataDir(), 'sandboxes');

/** Where the daemon keeps what survives it, unless it was told otherwise: beside the snapshots. */
export const statePath = (): string => process.env['FORKD_STATE'] || join(dataDir(), 'state.json');

/** What was learnt about this host, e.g. whether KVM boots a guest. */
export const hostFile = (): string => join(dataDir(), 'host.json');

/** Guest images: `$FORKD_RUN_CACHE`, else /var/cache/forkd for root, else under `$XDG_CACHE_HOME` or `~/.cache`. */
export const cacheDir = (): string => {
  const named = process.env['FORKD_RUN_CACHE'];
  if (named) return named;
  if (process.getuid?.() === 0) return '/var/cache/forkd';
  return join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'forkd');
};

export const imagesDir = (): string => join(cacheDir(), 'images');

/** Root disks made of container images. */
export const rootfsDir = (): string => join(cacheDir(), 'rootfs');

/** Root disks made of recipes. */
export const recipeDisksDir = (): string => join(cacheDir(), 'recipes');

/** What says which networks on this host are whose: `$FORKD_RUN_DIR`, else /run/forkd. */
export const runDir = (): string => process.env['FORKD_RUN_DIR'] || '/run/forkd';

export const tempDir = (): string => tmpdir();

/** Every directory that forkd makes in the temp dir starts so: `cleanup` removes no other. */
export const WORK_DIR_PREFIX = 'forkd-';
