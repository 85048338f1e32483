import { AsyncLocalStorage } from 'node:async_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { native } from '../../../src/native/binding.js';

const storage = new AsyncLocalStorage<string>();
let calls = 0;
let store: string | undefined;
const { pidfd } = native.spawn({ file: '/bin/true', args: ['true'], env: [], fds: [] });
storage.run('kept', () => {
  native.pidfdWatch(pidfd, () => {
    calls++;
    store = storage.getStore();
  });
});
await sleep(500);
console.log(JSON.stringify({ calls, store }));
