import { dataDir } from '../../main/paths.js';
import type { Command } from '../command.js';
import { printLine } from '../render.js';

export const where: Command = {
  name: 'where',
  description: 'Print the data directory',
  options: [],
  examples: ['du -sh "$(forkd where)"'],
  run: () => {
    printLine(dataDir());
    return 0;
  },
};
