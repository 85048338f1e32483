import type { Bench } from '../bench.js';
import { branch } from './branch.js';
import { branchWrite } from './branch-write.js';
import { buildBench } from './build.js';
import { chain } from './chain.js';
import { coldRestore } from './cold-restore.js';
import { daemonBench } from './daemon.js';
import { density } from './density.js';
import { evalBench } from './eval.js';
import { execStream } from './exec-stream.js';
import { fanOut } from './fan-out.js';
import { fault } from './fault.js';
import { files } from './files.js';
import { isolation } from './isolation.js';
import { layer } from './layer.js';
import { lazyBench } from './lazy.js';
import { lifecycle } from './lifecycle.js';
import { namespaces } from './namespaces.js';
import { neighbours } from './neighbours.js';
import { packBench } from './pack.js';
import { pullBench } from './pull.js';
import { wpBench } from './wp-bench.js';

// biome-ignore lint/suspicious/noExplicitAny: what a trial returns is private to its bench
export const benches: Bench<any>[] = [
  coldRestore,
  evalBench,
  fanOut,
  isolation,
  branch,
  density,
  lifecycle,
  layer,
  fault,
  branchWrite,
  lazyBench,
  chain,
  buildBench,
  packBench,
  pullBench,
  wpBench,
  execStream,
  files,
  daemonBench,
  namespaces,
  neighbours,
];

export const findBench = (name: string | undefined) => benches.find((bench) => bench.name === name);
