/** The files of the group of one VM: `<hierarchy>/forkd/<name>`, in each hierarchy in which it is. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Controller, type Hierarchy, hierarchies } from './hierarchy.js';
import { textOf } from './read.js';
import { makeParent, parentIn } from './subtree-control.js';

export class GroupFiles {
  constructor(readonly name: string) {}

  /** One for each hierarchy in which it is. */
  get dirs(): string[] {
    const all = Object.values(hierarchies()).map((hierarchy) => this.dir(hierarchy));
    return [...new Set(all)].filter((dir) => existsSync(dir));
  }

  dir(hierarchy: Hierarchy): string {
    return join(parentIn(hierarchy), this.name);
  }

  make(controller: Controller): string {
    const dir = this.dir(makeParent(controller));
    mkdirSync(dir, { recursive: true });
    return dir;
  }

  path(controller: Controller, file: string): string | undefined {
    const hierarchy = hierarchies()[controller];
    return hierarchy && join(this.dir(hierarchy), file);
  }

  read(controller: Controller, file: string): string {
    return textOf(this.path(controller, file));
  }

  number(controller: Controller, file: string): number | null {
    const text = this.read(controller, file).trim();
    return /^\d+$/.test(text) ? Number(text) : null;
  }
}

/** Swap is not accounted on every host. */
export const writeWhereItIs = (path: string, value: string): void => {
  if (existsSync(path)) writeFileSync(path, value);
};
