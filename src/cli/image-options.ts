/** What the commands that make a snapshot of a container image share. */
import { join } from 'node:path';
import { formatBytes, formatMs } from '../contract/units.js';
import type { ImageHooks, ImageSnapshotRequest } from '../main/from-image.js';
import { requirePackages } from '../main/oci/extras.js';
import { DEFAULT_BOOT_WAIT_SECS, DEFAULT_MEMORY_MIB } from '../main/make-snapshot.js';
import type { Options } from './options.js';
import { Bar, step, warn } from './progress.js';
import { StepProgress } from './setup.js';
import { words } from './words.js';

export const imageOptions: [flags: string, description: string][] = [
  ['--extra <PACKAGE>', 'Add a package, by its own apt, apk or dnf, in a VM (repeatable)'],
  ['--size-mib <N>', 'The least size of the root disk, MiB; guests write to RAM, so it needs none to spare'],
  ['--cache <DIR>', 'Where root disks are kept, below rootfs/ (env FORKD_RUN_CACHE)'],
  ['--kernel <PATH>', 'Kernel (env FORKD_KERNEL; default: the embedded Debian cloud kernel)'],
  ['--tap <NAME>', 'Give the guest a network card on this host tap (env FORKD_TAP; default: none)'],
  ['--boot-wait-secs <N>', `Longest wait for the agent, seconds (default ${DEFAULT_BOOT_WAIT_SECS})`],
  ['--mem-size-mib <N>', `Guest memory, MiB (default ${DEFAULT_MEMORY_MIB})`],
  ['--warm <CMD>', 'Run this in the parent before it is saved, without a shell; it must end with 0'],
  ['--warm-eval <CODE>', 'Python that the parent runs before it is saved, where the image has Python'],
];

/** The words of `--warm`. */
export const warmOf = (options: Options): string[] | undefined => {
  const text = options.string('warm');
  const found = text === undefined ? undefined : words(text);
  if (text !== undefined && (found === undefined || found.length === 0))
    throw options.wrong('--warm', 'is empty, or a quote in it is left open');
  return found;
};

export const readImageRequest = (options: Options, image: string): Omit<ImageSnapshotRequest, 'tag'> => {
  const cache = options.string('cache');
  const extras = options.strings('extra');
  requirePackages(extras, options.command);
  const optional = {
    extras: extras.length > 0 ? extras : undefined,
    sizeMib: options.count('size-mib'),
    cacheDir: cache === undefined ? undefined : join(cache, 'rootfs'),
    kernel: options.string('kernel', { env: 'FORKD_KERNEL' }),
    tap: options.string('tap', { env: 'FORKD_TAP' }),
    bootWaitSecs: options.count('boot-wait-secs'),
    memoryMib: options.count('mem-size-mib'),
    warmExec: warmOf(options),
    warmEval: options.string('warm-eval'),
    require: options.requireIsolation(),
  };
  const given = Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined));
  return { image, ...(given as Record<string, never>) };
};

/** Progress of building on stderr; `end` when it is done. */
export const imageHooks = (signal: AbortSignal): ImageHooks & { end: () => void } => {
  const bar = new Bar('   ', formatBytes);
  const steps = new StepProgress();
  return {
    signal,
    onStep: step,
    onProgress: (done, total) => bar.update(done, Math.max(done, total)),
    onRetry: (reason, ms) => warn(`${reason}: trying again in ${formatMs(ms)}`),
    onImage: steps.update,
    end: () => {
      bar.end();
      steps.end();
    },
  };
};
