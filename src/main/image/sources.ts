/** The guest sources of this installation (src/guest) and the digest that names them. */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BUSYBOX_COMMANDS, USERLAND } from './packages.js';

/** Raised when the builder itself changes what it makes of the same packages and sources. */
export const BUILDER_VERSION = 2;

/** dist/src/main/image/sources.js -> src/guest: the guest files are not compiled, so they stay where they were written. */
export const guestSourceDir = (): string => fileURLToPath(new URL('../../../../src/guest', import.meta.url));

export interface GuestSource {
  /** Path below src/guest. */
  path: string;
  data: Buffer;
}

/** What goes into the initramfs as it is. */
export const readGuestSources = (dir = guestSourceDir()): GuestSource[] => {
  const agent = readdirSync(join(dir, 'forkd_agent')).filter((name) => name.endsWith('.py'));
  const paths = ['init', ...agent.sort().map((name) => `forkd_agent/${name}`)];
  return paths.map((path) => ({ path, data: readFileSync(join(dir, path)) }));
};

/** What is compiled with the addon: by its sources, since every build of it has other bytes. */
const readCompiled = (dir = guestSourceDir()): GuestSource[] =>
  ['agent', 'take'].flatMap((part) =>
    readdirSync(join(dir, part))
      .sort()
      .map((name) => ({ path: `${part}/${name}`, data: readFileSync(join(dir, part, name)) })),
  );

/** What decides, before apt is asked anything, whether an image in the cache fits this installation. */
export const sourceDigest = (sources: GuestSource[]): string => {
  const hash = createHash('sha256');
  hash.update(JSON.stringify([BUILDER_VERSION, process.arch, USERLAND, BUSYBOX_COMMANDS]));
  for (const { path, data } of [...sources, ...readCompiled()]) hash.update(`\0${path}\0${data.length}\0`).update(data);
  return hash.digest('hex');
};
