import type { Command } from '../command.js';
import { withLink } from '../guest-link.js';
import { line } from '../progress.js';
import { printJson, printTable } from '../render.js';
import { targetOptions } from './target.js';

export const ps: Command = {
  name: 'ps',
  args: '<id>',
  description: 'List the commands in the background of a sandbox',
  options: [['--json', 'Print one JSON array'], ...targetOptions.filter(([flags]) => flags.startsWith('--daemon'))],
  examples: ['forkd ps sb-6743b1c2-9f31c2aa'],
  run: (options) =>
    withLink(options, async (link) => {
      const { runs = [] } = await link.ask({ action: 'runs' });
      if (options.flag('json')) printJson(runs);
      else if (runs.length === 0) line('no commands in the background');
      else
        printTable(
          ['RUN', 'PID', 'STATE', 'TTY', 'COMMAND'],
          runs.map((one) => [
            String(one.run),
            String(one.pid),
            one.exit_code === null ? (one.attached ? 'attached' : 'running') : `ended ${one.exit_code}`,
            one.tty ? 'yes' : 'no',
            one.args.join(' '),
          ]),
        );
      return 0;
    }),
};
