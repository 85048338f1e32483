import type { Command } from '../command.js';
import { printPrettyJson } from '../render.js';
import { callTarget, targetOptions } from './target.js';

export const ping: Command = {
  name: 'ping',
  description: 'Ask the agent of a sandbox whether it is there; prints its reply as JSON',
  options: targetOptions,
  examples: ['forkd ping --target sb-6743b1c2-9f31c2aa', 'forkd ping --target 10.42.0.2:8888'],
  run: async (options) => {
    printPrettyJson(await callTarget(options, { action: 'ping' }, { connectMs: 2000, replyMs: 3000 }));
    return 0;
  },
};
