/** Loading a memory image while the worker threads that read it are ended: others take over. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Worker } from 'node:worker_threads';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { MemoryImage } from '../../src/main/memory/image.js';
import { MemorySource } from '../../src/main/memory/source.js';
import { Pool } from '../../src/main/pool.js';
import { Store } from '../../src/main/store/store.js';
import { native } from '../../src/native/binding.js';
import { CHUNKS, PAGE, putBase } from '../support/layers.js';

interface Context {
  root: string;
  store: Store;
  pool: Pool;
}

const load = suite<Context>('loading memory');

/** What is done to the next worker threads, in the order in which they start. */
const fates: ((worker: Worker) => unknown)[] = [];
process.on('worker', (worker) => fates.shift()?.(worker));
/** `ms` after it has said that it is ready: Node aborts when a thread is ended while it still loads its modules. */
const endAfter = (ms: number) => (worker: Worker) =>
  worker.once('message', () =>
    setTimeout(() => {
      if (loading) ended++;
      void worker.terminate();
    }, ms),
  );
let loading = false;
/** Workers that were ended before the image was there. */
let ended = 0;

const pageOf = (chunk: number): number => chunk * (CHUNK_BYTES / PAGE) + (chunk % (CHUNK_BYTES / PAGE));
const filling = (chunk: number): number => (chunk % 255) + 1;

load.before((context) => {
  context.root = mkdtempSync(join(tmpdir(), 'load-'));
  context.store = new Store(join(context.root, 'snapshots'));
  putBase(
    context.store,
    'base',
    Object.fromEntries(Array.from({ length: CHUNKS }, (_, chunk) => [pageOf(chunk), filling(chunk)])),
  );
});
load.after(({ root }) => rmSync(root, { recursive: true, force: true }));

const wrongChunks = async ({ store, pool }: Context): Promise<number> => {
  const chain = store.hold('base');
  const source = MemorySource.open(chain.layers);
  try {
    loading = true;
    const image = await MemoryImage.load('base', source, pool);
    loading = false;
    const page = Buffer.alloc(PAGE);
    let wrong = 0;
    for (let chunk = 0; chunk < CHUNKS; chunk++) {
      native.fdRead(image.memfd, page, pageOf(chunk) * PAGE);
      if (!page.equals(Buffer.alloc(PAGE, filling(chunk)))) wrong++;
    }
    image.close();
    return wrong;
  } finally {
    source.close();
    chain.close();
  }
};

load('readers that are ended at any moment are replaced, and the image is right', async (context) => {
  // From when they start to read until after the last chunk.
  for (const ms of [1, 5, 10, 20, 40, 80]) {
    const pool = new Pool();
    try {
      fates.push(endAfter(ms), endAfter(ms + 1), endAfter(ms));
      assert.is(await wrongChunks({ ...context, pool }), 0, `ended after ${ms} ms`);
    } finally {
      await pool.close();
      fates.length = 0;
    }
  }
  assert.ok(ended > 0, 'no reader was ended in the middle');
});

load.run();
