/** What sandboxes take of this host's memory, as the kernel counts it. */
import { readFile } from 'node:fs/promises';
import type { Entry } from './registry.js';

export interface SandboxMemory {
  id: string;
  /** Bytes that no other process maps, and that others map too. */
  private: number;
  shared: number;
}

/** Files read at once: the kernel walks the page tables of each, and few at a time leave processors to the guests. */
const AT_ONCE = 4;

/** Of those that run. One that ends meanwhile is left out. */
export const memoryOf = async (entries: Entry[]): Promise<SandboxMemory[]> => {
  const waiting = entries.filter(({ sandbox }) => sandbox.state !== 'dead').reverse();
  const found: SandboxMemory[] = [];
  const work = async () => {
    for (let entry = waiting.pop(); entry; entry = waiting.pop()) {
      const { id, vmm } = entry.sandbox;
      const text = await readFile(`/proc/${vmm.pid}/smaps_rollup`, 'utf8').catch(() => '');
      if (text === '' || entry.sandbox.state === 'dead') continue;
      found.push({ id, private: sum(text, 'Private'), shared: sum(text, 'Shared') });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return found;
};

const sum = (text: string, kind: string): number =>
  [...text.matchAll(new RegExp(`^${kind}_\\w+:\\s+(\\d+) kB`, 'gm'))].reduce(
    (all, [, kib]) => all + Number(kib) * 1024,
    0,
  );
