import { native } from '../../../src/native/binding.js';

const alive = setTimeout(() => {}, 10_000);
process.once('uncaughtException', (error) => {
  console.log(JSON.stringify({ uncaught: error.message }));
  clearTimeout(alive);
});
const { pidfd } = native.spawn({ file: '/bin/true', args: ['true'], env: [], fds: [] });
native.pidfdWatch(pidfd, () => {
  throw new Error('from the callback');
});
