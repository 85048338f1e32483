/** One thread of a fault server. */
import { workerData } from 'node:worker_threads';
import { native } from '../../src/native/binding.js';

interface Job {
  server: number;
  states: Int32Array;
  stats: BigInt64Array;
  order: Uint32Array;
}

const { server, states, stats, order } = workerData as Job;
native.faultServe(server, states, stats, order);
