/** How much memory differs between two branches. What a process has changed is made a layer over the chain that it runs from. */
import { closeSync, openSync, readFileSync, statSync } from 'node:fs';
import { errnoOf } from '../../contract/errors.js';
import { damageOf } from '../../contract/layer-damage.js';
import type { ImageOf, TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import { memfdsOf } from '../vmm/memfds.js';

export const memoryDiff = ({ a, b }: TaskInput<'memoryDiff'>): TaskOutput<'memoryDiff'> => {
  const one = open(a);
  try {
    const other = open(b);
    try {
      const { imageBytes } = native.sourceInfo(one.source);
      const found = native.sourceDiffer(one.source, other.source);
      return { ...found, imageBytes, privateBytes: [one.privateBytes, other.privateBytes] };
    } finally {
      native.sourceClose(other.source);
    }
  } finally {
    native.sourceClose(one.source);
  }
};

const open = ({ layers, live }: ImageOf): { source: number; privateBytes: number } => {
  const fds = layers.map(({ fd }) => fd);
  try {
    if (!live) return { source: native.sourceOpen(fds), privateBytes: 0 };
    const changed = native.memfdCreate('changed');
    try {
      const privateBytes = writePrivate(live, changed);
      return { source: native.sourceOpen([...fds, changed]), privateBytes };
    } finally {
      native.fdClose(changed);
    }
  } catch (error) {
    throw damageOf(error, layers);
  }
};

/** Times that a process may map or unmap memory while it is read. */
const ATTEMPTS = 5;

const writePrivate = ({ pid, parentRoot }: NonNullable<ImageOf['live']>, target: number): number => {
  const image = openSync(imageOf(pid), 'r');
  try {
    for (let attempt = 1; ; attempt++) {
      try {
        return native.layerWriteProcess(pid, image, target, { zstdLevel: 0, parentRoot }).dirtyBytes;
      } catch (error) {
        if (errnoOf(error) !== 'ESTALE' || attempt === ATTEMPTS) throw error;
      }
    }
  } finally {
    closeSync(image);
  }
};

/** The memfd that it maps as the guest's RAM: the largest that it shows privately, and has open. */
const imageOf = (pid: number): string => {
  const mapped = new Map<string, number>();
  for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
    const [, begin = '0', end = '0', inode] =
      /^([0-9a-f]+)-([0-9a-f]+) \S\S\Sp \S+ \S+ (\d+) +\/memfd:/.exec(line) ?? [];
    if (inode !== undefined)
      mapped.set(inode, (mapped.get(inode) ?? 0) + Number.parseInt(end, 16) - Number.parseInt(begin, 16));
  }
  const [inode] = [...mapped].sort(([, x], [, y]) => y - x)[0] ?? [];
  const image = memfdsOf(pid).find(({ path }) => String(statSync(path, { throwIfNoEntry: false })?.ino) === inode);
  if (image) return image.path;
  throw new Error(`process ${pid} maps no image`);
};
