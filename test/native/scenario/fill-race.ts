// Three workers fill the same image from the same layer. A third of the chunks is data, a third zeros, a third holes.
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { CHUNK_BYTES, PageMap } from '../../../src/contract/page-map.js';
import { native } from '../../../src/native/binding.js';

const CHUNKS = 500;
const WORKERS = 3;

interface Fill {
  states: Int32Array;
  ready: Int32Array;
  /** Handle. */
  source: number;
  memfd: number;
}

function contents(fd: number): Buffer {
  const bytes = Buffer.alloc(native.fdSize(fd).bytes);
  native.fdRead(fd, bytes, 0);
  return bytes;
}

if (isMainThread) {
  const image = native.memfdCreate('source');
  const memfd = native.memfdCreate('image');
  for (const fd of [image, memfd]) native.fdResize(fd, CHUNKS * CHUNK_BYTES);
  for (let chunk = 0; chunk < CHUNKS; chunk++) {
    const bytes = new Uint8Array(CHUNK_BYTES).fill(chunk % 3 === 0 ? 1 + (chunk % 255) : 0);
    if (chunk % 3 < 2) native.fdWrite(image, bytes, chunk * CHUNK_BYTES);
  }

  const layer = native.memfdCreate('layer');
  native.layerWriteImage(image, layer, { chunkBytes: CHUNK_BYTES, zstdLevel: 0 });
  const source = native.sourceOpen([layer]);

  const map = PageMap.create(CHUNKS * CHUNK_BYTES);
  const ready = new Int32Array(new SharedArrayBuffer(4));
  const results = await Promise.all(
    Array.from({ length: WORKERS }, () => {
      const fill: Fill = { states: map.states, ready, source, memfd };
      const worker = new Worker(fileURLToPath(import.meta.url), { workerData: fill });
      return new Promise<ReturnType<typeof native.sourceFill>>((resolve) => worker.once('message', resolve));
    }),
  );
  const sum = (key: 'filled' | 'skipped' | 'bytes') => results.reduce((total, result) => total + result[key], 0);
  console.log(
    JSON.stringify({
      chunks: CHUNKS,
      filled: sum('filled'),
      skipped: sum('skipped'),
      counts: map.counts(),
      bytesWritten: sum('bytes'),
      equal: contents(memfd).equals(contents(image)),
      allocated: native.fdSize(memfd).allocated,
    }),
  );
} else {
  const { states, ready, source, memfd } = workerData as Fill;
  Atomics.add(ready, 0, 1);
  while (Atomics.load(ready, 0) < WORKERS); // all start together
  parentPort?.postMessage(native.sourceFill(source, states, 0, CHUNKS, memfd));
}
