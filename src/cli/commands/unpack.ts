import { formatBytes } from '../../contract/units.js';
import { unpack as unpackSnapshot } from '../../main/hub/unpack.js';
import { readIdentities } from '../../main/hub/age.js';
import { readTrustedKey } from '../../main/hub/signature.js';
import type { Command } from '../command.js';
import { Bar, line, step } from '../progress.js';
import { printJson } from '../render.js';
import { withEngine } from '../with-engine.js';

export const unpack: Command = {
  name: 'unpack',
  args: '<path>',
  description: 'Take a snapshot out of a pack, after checking all of it',
  options: [
    ['--tag <TAG>', 'Another name for the snapshot'],
    ['--force', 'Replace an existing tag'],
    ['--trust <KEY>', 'Take it only if it is signed by this public Ed25519 key in PEM (repeatable: by one of them)'],
    ['--identity <FILE>', 'Your age identity (AGE-SECRET-KEY-...), for an encrypted pack (repeatable)'],
    ['--json', 'Print one JSON object'],
  ],
  examples: [
    'forkd unpack base.forkd-snapshot.tar.zst --tag base2',
    'forkd unpack base.forkd-snapshot.tar.zst.age --identity key.txt',
    'forkd unpack base.forkd-snapshot.tar.zst --trust key.pub   # made by: openssl pkey -in key.pem -pubout -out key.pub',
  ],
  run: (options) => {
    const [path] = options.positional;
    if (path === undefined) throw options.wrong('PATH', 'is missing');
    const tag = options.string('tag');
    const trusted = options.strings('trust').map(readTrustedKey);
    return withEngine(async (engine, signal) => {
      const identities = await readIdentities(options.strings('identity'));
      step(`unpacking ${path}`);
      const request = {
        path,
        force: options.flag('force'),
        trusted,
        identities,
        ...(tag === undefined ? {} : { tag }),
      };
      const bar = new Bar('   ', formatBytes);
      const onProgress = (at: number, total: number) => bar.update(at, total);
      const done = await unpackSnapshot(engine.store, request, { signal, onProgress }).finally(() => bar.end());
      line(`✓ snapshot '${done.tag}' in ${done.dir}`);
      if (options.flag('json')) printJson(done);
      return 0;
    });
  },
};
