/** What a benchmark is. Each trial runs in a process of its own (trial.ts), so that none profits from the one before. */

import type { Plot } from './plot.js';

export interface Parameters {
  n: number;
  trials: number;
  [name: string]: number | string | boolean;
}

export interface Bench<Trial> {
  name: string;
  /** One line for the list, then what the figures include. */
  description: string;
  /** Parameters of a real run, and the small ones with which the tests run it so that it never rots. */
  full: Parameters;
  smoke: Parameters;
  /** Runs in a fresh process and returns plain data. */
  trial(parameters: Parameters): Promise<Trial>;
  /** Joins the trials into the one object that is printed. */
  summarise(trials: Trial[], parameters: Parameters): Record<string, unknown>;
  /** What `--plot FILE.svg` draws; a bench without it refuses the option. */
  plot?(trials: Trial[], parameters: Parameters): Plot;
}
