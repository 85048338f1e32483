import type { Bench } from '../bench.js';
import { coldRestore } from './cold-restore.js';
import { evalBench } from './eval.js';
import { fanOut } from './fan-out.js';

// biome-ignore lint/suspicious/noExplicitAny: what a trial returns is private to its bench
export const benches: Bench<any>[] = [coldRestore, evalBench, fanOut];

export const findBench = (name: string | undefined) => benches.find((bench) => bench.name === name);
