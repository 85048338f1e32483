import type { Command } from '../command.js';
import { follow } from '../follow.js';
import { withLink } from '../guest-link.js';
import { targetOptions } from './target.js';
import { exitCode } from './exec.js';

export const attach: Command = {
  name: 'attach',
  args: '<id> <run>',
  description: 'Join a command in the background of a sandbox; Ctrl-P Ctrl-Q leaves it running',
  options: [
    ['-i, --interactive', 'Our stdin is its stdin, also when it is no terminal'],
    ...targetOptions.filter(([flags]) => flags.startsWith('--daemon')),
  ],
  examples: ['forkd exec -d sb-6743b1c2-9f31c2aa -- ./server', 'forkd attach sb-6743b1c2-9f31c2aa 1'],
  run: (options) => {
    const number = Number(options.positional[1]);
    if (!Number.isInteger(number)) throw options.wrong('RUN', 'is a number that `forkd exec -d` printed');
    return withLink(
      options,
      async (link) => {
        const input = options.flag('interactive') || process.stdin.isTTY === true;
        const session = link.open({ action: 'attach', run: number });
        const { tty } = (await session.opened) as { tty?: boolean };
        const ended = await follow(session, { input, terminal: tty === true, leaves: true });
        return exitCode(ended?.exit_code ?? 0);
      },
      options.positional[0],
    );
  },
};
