import { formatBytes } from '../../contract/units.js';
import { takeDisk, unpack as unpackSnapshot } from '../../main/hub/unpack.js';
import { readIdentities } from '../../main/hub/age.js';
import { readTrustedKey } from '../../main/hub/signature.js';
import type { Command } from '../command.js';
import { Bar, line, step } from '../progress.js';
import { printJson } from '../render.js';
import { diskOf, toldOf } from '../taken.js';
import { withEngine } from '../with-engine.js';

export const unpack: Command = {
  name: 'unpack',
  args: '<path>',
  description: 'Take a snapshot out of a pack of any version (1 to 3), after checking all of it',
  options: [
    ['--tag <TAG>', 'Another name for the snapshot'],
    ['--force', 'Replace an existing tag'],
    ['--trust <KEY>', 'Take it only if it is signed by this public Ed25519 key in PEM (repeatable: by one of them)'],
    ['--identity <FILE>', 'Your age identity (AGE-SECRET-KEY-...), for an encrypted pack (repeatable)'],
    ['--disk <PATH>', 'Take only the root disk, into this file: also of a pack whose VM only another engine can run'],
    ['--json', 'Print one JSON object'],
  ],
  examples: [
    'forkd unpack base.forkd-snapshot.tar.zst --tag base2',
    'forkd unpack base.forkd-snapshot.tar.zst.age --identity key.txt',
    'forkd unpack base.forkd-snapshot.tar.zst --trust key.pub   # made by: openssl pkey -in key.pem -pubout -out key.pub',
    'forkd unpack theirs.forkd-snapshot.tar.zst --disk disk.ext4 && forkd snapshot --tag theirs --rootfs disk.ext4',
  ],
  run: (options) => {
    const [path] = options.positional;
    if (path === undefined) throw options.wrong('PATH', 'is missing');
    const tag = options.string('tag');
    const disk = diskOf(options);
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
      const hooks = { signal, onProgress };
      const taking =
        disk === undefined
          ? unpackSnapshot(engine.store, request, hooks)
          : takeDisk(engine.store, { ...request, disk }, hooks);
      const taken = await taking.finally(() => bar.end());
      line(`✓ ${toldOf(taken)}`);
      if (options.flag('json')) printJson(taken);
      return 0;
    });
  },
};
