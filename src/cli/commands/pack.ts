import { formatBytes } from '../../contract/units.js';
import { pack as packSnapshot } from '../../main/hub/pack.js';
import { readRecipients } from '../../main/hub/age.js';
import { readSigningKey } from '../../main/hub/signature.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
import { Bar, line, step } from '../progress.js';
import { printJson } from '../render.js';
import { withEngine } from '../with-engine.js';

export const pack: Command = {
  name: 'pack',
  description: 'Write a snapshot, its ancestors and its disks into one file for another host',
  options: [
    ['--tag <TAG>', 'The snapshot'],
    ['-o, --out <PATH>', 'The pack (default: <TAG>.forkd-snapshot.tar.zst, with .age when encrypted)'],
    ['--description <TEXT>', 'Kept in the pack'],
    ['--base-image <NAME>', 'What it was made from; kept in the pack'],
    ['--sign <KEY>', 'Sign it: a private Ed25519 key in PEM (openssl genpkey -algorithm ed25519)'],
    ['--encrypt <AGE1...>', 'Encrypt it for this age recipient, or those in this file (repeatable)'],
    [
      '--pack-version <N>',
      '3 (default), or the layout of other tools, whole memory and the root disk in a file beside it: 1, or 2 for a chain',
    ],
    ['--json', 'Print one JSON object'],
  ],
  examples: [
    'forkd pack --tag base -o base.forkd-snapshot.tar.zst',
    'forkd pack --tag base --encrypt age1...   # the public key that age-keygen prints',
    'forkd pack --tag base --sign key.pem   # made by: openssl genpkey -algorithm ed25519 -out key.pem',
    'forkd pack --tag base --pack-version 1   # for tools that read only that; bring the .rootfs.zst that it names along',
  ],
  run: (options) => {
    const tag = options.required('tag');
    const description = options.string('description');
    const baseImage = options.string('base-image');
    const sign = options.string('sign');
    const isEncrypted = options.strings('encrypt').length > 0;
    const version = versionOf(options);
    const request = {
      tag,
      version,
      out: options.string('out', { short: 'o' }) ?? `${tag}.forkd-snapshot.tar.zst${isEncrypted ? '.age' : ''}`,
      ...(description === undefined ? {} : { description }),
      ...(baseImage === undefined ? {} : { baseImage }),
      ...(sign === undefined ? {} : { signingKey: readSigningKey(sign) }),
    };
    return withEngine(async (engine, signal) => {
      const recipients = await readRecipients(options.strings('encrypt'));
      step(`packing '${tag}'`);
      const bar = new Bar('   ', formatBytes);
      const onProgress = (at: number, total: number) => bar.update(at, total);
      const packed = await packSnapshot(
        engine.store,
        { ...request, recipients },
        {
          signal,
          onProgress,
        },
      ).finally(() => bar.end());
      line(`✓ ${packed.out}: ${formatBytes(packed.bytes)} of ${formatBytes(packed.content_bytes)}`);
      if (packed.sidecar !== undefined) line(`  its root disk, which belongs beside it: ${packed.sidecar}`);
      if (options.flag('json')) printJson({ tag, ...packed });
      return 0;
    });
  },
};

const versionOf = (options: Options): 1 | 2 | 3 => {
  const version = options.string('pack-version') ?? '3';
  if (!/^[123]$/.test(version)) throw options.wrong('--pack-version', `'${version}' is none of 1, 2 and 3`);
  if (version === '3') return 3;
  for (const name of ['sign', 'encrypt'])
    if (options.strings(name).length > 0) throw options.wrong(`--${name}`, 'needs version 3');
  return Number(version) as 1 | 2;
};
