/** How fast this host's time stamp counter runs, kHz: emulated guests read it, and keep the speed they were booted with. */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { native } from '../../native/binding.js';
import { recall, remember } from './known.js';

/** Two readings of 50 ns or so each, this far apart, are good to a few parts in a million. */
const WINDOW_MS = 50;

/** Measured once a boot of the host. */
export const tscKhz = async (hostFile: string): Promise<number> => {
  const question = `tsc kHz (boot ${readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()})`;
  const known = recall<number>(hostFile, question);
  if (known !== undefined) return known;
  const first = native.tscSample();
  await sleep(WINDOW_MS);
  const second = native.tscSample();
  const khz = Math.round((Number(second.ticks - first.ticks) / Number(second.ns - first.ns)) * 1e6);
  remember(hostFile, question, khz);
  return khz;
};

/** Two hosts (or two measurements) whose counters differ by less than this run a guest's clock right: half a second in an hour. */
const TOLERANCE = 150e-6;

export const sameSpeed = (a: number, b: number): boolean => Math.abs(a - b) <= a * TOLERANCE;
