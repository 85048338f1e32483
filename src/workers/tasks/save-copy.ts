import { closeSync, openSync, statSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import { LAYER_ZSTD_LEVEL } from '../../contract/snapshot.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import { Deadline } from '../deadline.js';
import { memfdsOf } from '../vmm/memfds.js';
import { Qmp } from '../vmm/qmp.js';
import { saveState } from '../vmm/save-state.js';

const SAVE_MS = 120_000;

/**
 * Saves a copy of a VM that was made to be saved: stops it, writes its device state, and of its memory what it and its
 * forebears have changed since they were loaded. It has run for the moment until `stop` came; both parts are taken after.
 */
export const saveCopy = ({ vm, parentRoot, statePath, memoryPath }: TaskInput<'saveCopy'>): TaskOutput<'saveCopy'> => {
  const began = performance.now();
  // Copied in the middle of its QMP session: the greeting is long past.
  const qmp = new Qmp(vm.qmpFd, 'the copy to be saved', new Deadline(SAVE_MS));
  qmp.run('stop');
  qmp.prepareMigration();
  saveState(qmp, statePath);
  const saved = performance.now();
  const memory = openGuestMemory(vm.pid);
  try {
    const target = openSync(memoryPath, 'wx+', 0o600);
    try {
      const { root, fileBytes, dirtyBytes } = native.layerWriteProcess(vm.pid, memory, target, {
        zstdLevel: LAYER_ZSTD_LEVEL,
        parentRoot,
      });
      return {
        state_ms: saved - began,
        memory_ms: performance.now() - saved,
        state_bytes: statSync(statePath).size,
        memory_root: root,
        written_bytes: fileBytes,
        dirty_bytes: dirtyBytes,
      };
    } finally {
      closeSync(target);
    }
  } finally {
    closeSync(memory);
  }
};

/** The memfd that a VM maps: every engine process names its own so (main/memory/image.ts). */
const openGuestMemory = (pid: number): number => {
  const memory = memfdsOf(pid).find(({ target }) => target.startsWith('/memfd:forkd:'));
  if (memory) return openSync(memory.path, 'r');
  throw new ForkdError('INTERNAL', { reason: `process ${pid} has no guest memory` });
};
