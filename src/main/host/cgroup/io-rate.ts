/** Whether a group reads or writes as fast as it may. No kernel counts how often a rate was met, so it is looked at now and then. */
import { MiB } from '../../../contract/units.js';
import type { GroupFiles } from './files.js';
import { ioOf } from './usage.js';

/** Between two looks at what was read and written: a rate over less is a burst. */
const LOOK_MS = 500;
/** Of its rate. */
const MET = 0.9;

interface Look {
  at: number;
  read: number;
  written: number;
}

export class IoRate {
  readonly #files: GroupFiles;
  #last: Look | undefined;
  #met = 0;

  constructor(files: GroupFiles) {
    this.#files = files;
  }

  /** How often it was looked at and had been at its rate since the time before. */
  get met(): number {
    return this.#met;
  }

  /** Its rate is another one from now on. */
  restart(): void {
    this.#last = this.#now();
  }

  look(ioMibPerS: number): void {
    const before = this.#last;
    if (before && performance.now() - before.at < LOOK_MS) return;
    const now = this.#now();
    this.#last = now;
    if (!before || !now) return;
    const most = Math.max(now.read - before.read, now.written - before.written);
    if (most >= MET * ioMibPerS * MiB * ((now.at - before.at) / 1000)) this.#met++;
  }

  #now(): Look | undefined {
    const moved = ioOf(this.#files);
    return moved && { at: performance.now(), ...moved };
  }
}
