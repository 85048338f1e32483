/** A process that works on a store as it is told: `peer.js DATA SUBJECT_PID`. One JSON array a line in, one outcome a line out. */
import { openSync } from 'node:fs';
import { createInterface } from 'node:readline';
import type { OpenChain } from '../../../src/main/store/open-chain.js';
import { MemorySource } from '../../../src/main/memory/source.js';
import { pagesOf, putBase, putDiff, readPages, type Subject } from '../../support/layers.js';
import { BASE, CHUNKS_OF_NOTE, compactHere, storeOf } from './world.js';

const [data = '', pid = ''] = process.argv.slice(2);
const subject = { pid: Number(pid), memfd: openSync(`/proc/${pid}/fd/3`, 'r+') } as Subject;
const store = storeOf(data);
let held: OpenChain | undefined;

const acts: Record<string, (...args: string[]) => unknown> = {
  read: (tag) => readPages(store, tag as string, CHUNKS_OF_NOTE),
  hold: (tag) => {
    held = store.hold(tag as string);
  },
  /** What is held, read to the end. */
  release: () => {
    const source = MemorySource.open((held as OpenChain).layers);
    const pages = pagesOf(source.handle);
    source.close();
    held?.close();
    return pages;
  },
  remove: (tag) => store.remove(tag as string),
  cascade: (tag) => store.remove(tag as string, { cascade: true }),
  force: (tag) => store.remove(tag as string, { force: true }),
  base: (tag) => void putBase(store, tag as string, BASE),
  replace: (tag) => void putBase(store, tag as string, BASE, {}, true),
  diff: (tag, parent) => void putDiff(store, tag as string, parent as string, subject),
  compact: async (from, to) => void (await compactHere(store, from as string, to as string)),
};

console.log('ready');
for await (const line of createInterface({ input: process.stdin })) {
  const [act = '', ...args] = JSON.parse(line) as string[];
  try {
    console.log(JSON.stringify({ value: (await acts[act]?.(...args)) ?? null }));
  } catch (error) {
    const { code = 'UNKNOWN', message } = error as { code?: string; message: string };
    console.log(JSON.stringify({ code, message }));
  }
}
