// Four workers run through the same map, two claiming with Atomics and two in C++. Each counts its wins per chunk.
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { CHUNK_BYTES, PageMap } from '../../../src/contract/page-map.js';
import { native } from '../../../src/native/binding.js';

const CHUNKS = 300_000;
const WORKERS = 4;

interface Race {
  states: Int32Array;
  wins: Int32Array;
  ready: Int32Array;
  claimsIn: 'js' | 'c++';
}

if (isMainThread) {
  const map = PageMap.create(CHUNKS * CHUNK_BYTES);
  const wins = new Int32Array(new SharedArrayBuffer(CHUNKS * 4));
  const ready = new Int32Array(new SharedArrayBuffer(4));
  const winsByWorker = await Promise.all(
    Array.from({ length: WORKERS }, (_, i) => {
      const race: Race = { states: map.states, wins, ready, claimsIn: i % 2 ? 'js' : 'c++' };
      const worker = new Worker(fileURLToPath(import.meta.url), { workerData: race });
      return new Promise<number>((resolve) => worker.once('message', resolve));
    }),
  );
  const wonOnce = wins.reduce((sum, n) => sum + (n === 1 ? 1 : 0), 0);
  console.log(JSON.stringify({ chunks: CHUNKS, wonOnce, winsByWorker }));
} else {
  const { states, wins, ready, claimsIn } = workerData as Race;
  const map = new PageMap(states);
  Atomics.add(ready, 0, 1);
  while (Atomics.load(ready, 0) < WORKERS); // all start together
  let won = 0;
  for (let chunk = 0; chunk < CHUNKS; chunk++) {
    const claimed = claimsIn === 'js' ? map.claim(chunk) : native.chunkClaim(states, chunk);
    if (!claimed) continue;
    won++;
    Atomics.add(wins, chunk, 1);
  }
  parentPort?.postMessage(won);
}
