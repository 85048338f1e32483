import type { Bench } from '../bench.js';
import { branch } from './branch.js';
import { coldRestore } from './cold-restore.js';
import { density } from './density.js';
import { evalBench } from './eval.js';
import { fanOut } from './fan-out.js';
import { layer } from './layer.js';
import { lifecycle } from './lifecycle.js';

// biome-ignore lint/suspicious/noExplicitAny: what a trial returns is private to its bench
export const benches: Bench<any>[] = [coldRestore, evalBench, fanOut, branch, density, lifecycle, layer];

export const findBench = (name: string | undefined) => benches.find((bench) => bench.name === name);
