import { jsonLines } from '../../contract/lines.js';
import type { FileEvent } from '../../contract/guest.js';
import type { Command } from '../command.js';
import { withLink } from '../guest-link.js';
import { line } from '../progress.js';
import { printJson, printLine } from '../render.js';
import { targetOptions } from './target.js';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

export const watch: Command = {
  name: 'watch',
  args: '<id> <path>',
  description: 'Tell what changes in a file or a directory of a sandbox, as it happens, until Ctrl-C',
  options: [
    ['-r, --recursive', 'In what is below too'],
    ['--json', 'Print one JSON object for each change'],
    ...targetOptions.filter(([flags]) => flags.startsWith('--daemon')),
  ],
  examples: [
    'forkd watch sb-6743b1c2-9f31c2aa /root/out -r',
    `forkd watch sb-6743b1c2-9f31c2aa /srv --json | jq -r 'select(.event == "written").path'`,
  ],
  run: (options) => {
    const [id, path = ''] = options.positional;
    if (!path.startsWith('/')) throw options.wrong('PATH', 'must be absolute');
    return withLink(
      options,
      async (link) => {
        const stream = link.open({ action: 'watch', path, recursive: options.flag('recursive') });
        const stop = () => stream.close();
        for (const name of SIGNALS) process.on(name, stop);
        await stream.opened;
        line(`watching ${path}`);
        for await (const event of jsonLines<FileEvent>(stream)) {
          if (options.flag('json')) printJson(event);
          else printLine(asLine(event));
        }
        await stream.ended.catch(() => undefined);
        return 0;
      },
      id,
    );
  },
};

const asLine = ({ event, path, from, is_dir }: FileEvent): string => {
  const name = is_dir && path !== '/' ? `${path}/` : path;
  return `${event.padEnd(10)}  ${from === undefined ? name : `${from} -> ${name}`}`;
};
