// Rounds of eight workers, each with three watches when it is terminated. In every other worker the watched children are
// killed at that very moment, so that callbacks meet the teardown.
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker } from 'node:worker_threads';
import { native } from '../../../src/native/binding.js';
import { exitOf, settledFdCount, spawnSleep } from '../process.js';

const ROUNDS = 6;
const WORKERS = 8;

async function runWorker(index: number): Promise<number> {
  const worker = new Worker(fileURLToPath(import.meta.url));
  const [pidfds] = (await once(worker, 'message')) as [number[]];
  if (index % 2) for (const pidfd of pidfds) native.pidfdSignal(pidfd, 9);
  await worker.terminate();
  for (const pidfd of pidfds) {
    native.pidfdSignal(pidfd, 9);
    await exitOf(pidfd);
    native.fdClose(pidfd);
  }
  return pidfds.length;
}

async function round(): Promise<number> {
  const ended = await Promise.all(Array.from({ length: WORKERS }, (_, index) => runWorker(index)));
  return ended.reduce((sum, n) => sum + n);
}

if (isMainThread) {
  await round(); // what Node opens once is open now
  const before = await settledFdCount();
  let ended = 0;
  for (let i = 0; i < ROUNDS; i++) ended += await round();
  console.log(JSON.stringify({ before, after: await settledFdCount(), ended }));
} else {
  const pidfds = [spawnSleep().pidfd, spawnSleep().pidfd, spawnSleep().pidfd];
  for (const pidfd of pidfds) native.pidfdWatch(pidfd, () => {});
  const stop = native.pidfdWatch(pidfds.at(-1) ?? -1, () => {});
  stop(); // this one is closing when the worker ends
  parentPort?.postMessage(pidfds);
  setInterval(() => {}, 1000);
}
