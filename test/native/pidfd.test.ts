import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { native } from '../../src/native/binding.js';
import { inChild } from './in-child.js';
import { exitOf, runShell, settledFdCount, spawnSleep } from './process.js';

const test = suite('native pidfd');

test('reports the exit code', async () => {
  assert.equal((await runShell('exit 0')).status, { code: 0, signal: null });
  assert.equal((await runShell('exit 42')).status, { code: 42, signal: null });
});

test('reports the signal', async () => {
  assert.equal((await runShell('kill -ABRT $$')).status, { code: null, signal: 6 });
});

test('a child that ended before the watch began is reported', async () => {
  const { pid, pidfd } = native.spawn({ file: '/bin/false', args: ['false'], env: [], fds: [] });
  await runShell(`while grep -qv ' Z ' /proc/${pid}/stat; do :; done`);
  assert.equal(await exitOf(pidfd), { code: 1, signal: null });
  native.fdClose(pidfd);
});

test('the end of a process that is not our child is seen, without a status', async () => {
  const { output } = await runShell('sleep 0.3 & echo $!');
  const pidfd = native.pidfdOpen(Number(output));
  assert.equal(await exitOf(pidfd), { code: null, signal: null });
  native.fdClose(pidfd);
});

test('the caller may close its descriptor while the watch goes on', async () => {
  const before = await settledFdCount();
  const { pid, pidfd } = spawnSleep();
  const ended = exitOf(pidfd);
  native.fdClose(pidfd);
  process.kill(pid, 'SIGTERM');
  assert.equal(await ended, { code: null, signal: 15 });
  assert.is(await settledFdCount(), before);
});

test('a stopped watch calls nobody and reaps nobody', async () => {
  const before = await settledFdCount();
  const { pidfd } = spawnSleep();
  let calls = 0;
  const stop = native.pidfdWatch(pidfd, () => calls++);
  stop();
  stop();
  native.pidfdSignal(pidfd, 9);
  assert.equal(await exitOf(pidfd), { code: null, signal: 9 });
  stop();
  assert.is(calls, 0);
  native.fdClose(pidfd);
  assert.is(await settledFdCount(), before);
});

test('a watch is called once, in the async context it was made in', async () => {
  assert.equal(await inChild('watch-context'), { calls: 1, store: 'kept' });
});

test('a watch does not keep the process alive', async () => {
  const start = performance.now();
  assert.is(await inChild('watch-only'), 'watching');
  assert.ok(performance.now() - start < 20_000); // the child sleeps for 60 s
});

test('an exception in the callback is an uncaught exception', async () => {
  assert.equal(await inChild('watch-throws'), { uncaught: 'from the callback' });
});

test('eight workers at once, terminated with watches under way: nothing crashes, no descriptor is left', async () => {
  const { before, after, ended } = (await inChild('terminate-workers', 120_000)) as Record<string, number>;
  assert.is(after, before);
  assert.is(ended, 8 * 6 * 3);
});

test.run();
