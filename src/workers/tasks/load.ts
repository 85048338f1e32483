import type { TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';

/** Fills a range of the page map. Several workers may be given ranges that overlap: each chunk has one winner. */
export const load = ({ map, first, count, chunkBytes, source, memfd }: TaskInput<'load'>): TaskOutput<'load'> =>
  native.chunksFill(map, first, count, chunkBytes, source, memfd);
