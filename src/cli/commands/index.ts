import type { Command } from '../command.js';
import { cleanup } from './cleanup.js';
import { doctor } from './doctor.js';
import { evaluate } from './eval.js';
import { exec } from './exec.js';
import { fork } from './fork.js';
import { images } from './images.js';
import { inspect } from './inspect.js';
import { ping } from './ping.js';
import { quickstart } from './quickstart.js';
import { rmi } from './rmi.js';
import { snapshot } from './snapshot.js';
import { snapshotCompact } from './snapshot-compact.js';
import { snapshotInfo } from './snapshot-info.js';
import { where } from './where.js';

/** In the order in which `forkd --help` lists them: the way a new user meets them. */
export const commands: Command[] = [
  quickstart,
  doctor,
  snapshot,
  fork,
  exec,
  evaluate,
  ping,
  images,
  snapshotInfo,
  snapshotCompact,
  inspect,
  rmi,
  cleanup,
  where,
];
