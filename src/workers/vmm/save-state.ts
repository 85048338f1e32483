import { closeSync, openSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import { native } from '../../native/binding.js';
import type { Qmp } from './qmp.js';

/** `migrate` to a file, which is fsynced. RAM that QEMU shares with a file is left out: what is written is device state. */
export const saveState = (qmp: Qmp, path: string): void => {
  const fd = openSync(path, 'wx', 0o600);
  try {
    qmp.run('getfd', { fdname: 'state' }, [fd]);
    qmp.run('migrate', { uri: 'fd:state' });
    const { status } = qmp.event('MIGRATION', ({ status: s }) => s === 'completed' || s === 'failed');
    if (status !== 'completed') {
      const { 'error-desc': reason = 'no reason given' } = qmp.run('query-migrate') as Record<string, string>;
      throw new ForkdError('VMM_PROTOCOL', { vm: qmp.name, command: 'migrate', reason });
    }
    native.fdSync(fd);
  } finally {
    closeSync(fd);
  }
};
