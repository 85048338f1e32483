/** What a command is. main.ts gives each to cac; nothing else knows cac. */
import type { Options } from './options.js';

export interface Command {
  name: string;
  /** Positional arguments in cac's notation, e.g. `[...tags]`. */
  args?: string;
  /** Shown instead of `name [args]`, e.g. with `-- CMD`. */
  usage?: string;
  description: string;
  /** `[notation, description]`. */
  options: [flags: string, description: string][];
  examples: string[];
  /** Returns the exit code; nothing means 0. */
  run(options: Options): Promise<number | undefined> | number | undefined;
}
