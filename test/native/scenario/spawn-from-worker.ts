// A worker spawns and exits. The main thread loads the addon only afterwards: with the worker gone, nobody holds the
// library, and the spawn thread must still be there.
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker } from 'node:worker_threads';

if (isMainThread) {
  const worker = new Worker(fileURLToPath(import.meta.url));
  const exited = once(worker, 'exit');
  const [pidfd] = (await once(worker, 'message')) as [number];
  await exited;
  await sleep(200);
  const { native } = await import('../../../src/native/binding.js');
  const { exitOf } = await import('../process.js');
  const aliveAfterWorker = native.pidfdSignal(pidfd, 0);
  native.pidfdSignal(pidfd, 9);
  console.log(JSON.stringify({ aliveAfterWorker, status: await exitOf(pidfd) }));
} else {
  const { spawnSleep } = await import('../process.js');
  parentPort?.postMessage(spawnSleep().pidfd);
}
