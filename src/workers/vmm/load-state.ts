import { ForkdError } from '../../contract/errors.js';
import type { Deadline } from '../deadline.js';
import { Qmp } from './qmp.js';

export interface LoadTimes {
  /** `performance.now()` when QEMU first spoke. */
  up: number;
}

/** Waits for QEMU's first word, loads device state from a descriptor that it inherited, and lets the guest run. `beforeLoad` is called when QEMU has opened all its files. */
export const loadState = (
  qmpFd: number,
  name: string,
  stateTarget: number,
  deadline: Deadline,
  beforeLoad?: () => void,
): LoadTimes => {
  const qmp = new Qmp(qmpFd, name, deadline);
  qmp.negotiate();
  const up = performance.now();
  beforeLoad?.();
  qmp.prepareMigration();
  qmp.run('migrate-incoming', { uri: `fd:${stateTarget}` });
  const { status } = qmp.event('MIGRATION', ({ status: s }) => s === 'completed' || s === 'failed');
  if (status !== 'completed') {
    throw new ForkdError('VMM_PROTOCOL', {
      vm: name,
      command: 'migrate-incoming',
      reason: 'the device state did not load',
    });
  }
  qmp.run('cont');
  return { up };
};
