import { closeSync, constants, copyFileSync, openSync } from 'node:fs';
import { damageOf } from '../../contract/layer-damage.js';
import { LAYER_ZSTD_LEVEL } from '../../contract/snapshot.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';

/** Writes the files of a base that equals a chain, and fsyncs them. */
export const compact = ({ layers, memoryPath, stateFd, statePath }: TaskInput<'compact'>): TaskOutput<'compact'> => {
  const memory = openSync(memoryPath, 'wx+', 0o600);
  try {
    const fds = layers.map(({ fd }) => fd);
    const { root, fileBytes } = native.layerCompact(fds, memory, { zstdLevel: LAYER_ZSTD_LEVEL });
    copyState(stateFd, statePath);
    return { root, fileBytes };
  } catch (error) {
    throw damageOf(error, layers);
  } finally {
    closeSync(memory);
  }
};

const copyState = (from: number, path: string): void => {
  copyFileSync(`/proc/self/fd/${from}`, path, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE);
  const fd = openSync(path, 'r+');
  try {
    native.fdSync(fd);
  } finally {
    closeSync(fd);
  }
};
