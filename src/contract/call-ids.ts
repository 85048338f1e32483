/**
 * Ids of calls to an agent. A guest that was copied during a call answers it in the copy too, to whoever holds the copy's port: an
 * answer must fit no call there. Within a thread no id comes twice; threads and processes begin at a random place in 2^32.
 */
import { randomInt } from 'node:crypto';

/** Smaller ones are chosen by who writes a child's first words ahead (workers/vmm/hot-child.ts). */
const FIRST = 1000;
const END = 2 ** 32;

let next = randomInt(FIRST, END);

export const nextCallId = (): number => {
  const id = next++;
  if (next === END) next = FIRST;
  return id;
};
