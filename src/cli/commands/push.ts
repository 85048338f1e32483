import { formatBytes, formatMs } from '../../contract/units.js';
import { Http, parseUrl } from '../../http/client.js';
import { push as pushPack } from '../../main/hub/push.js';
import { readRecipients } from '../../main/hub/age.js';
import { readSigningKey } from '../../main/hub/signature.js';
import { isArtifact, parseArtifact, pushArtifact } from '../../main/registry/artifact.js';
import type { Reference } from '../../main/registry/reference.js';
import type { Command } from '../command.js';
import { Bar, line, step, warn } from '../progress.js';
import { printJson } from '../render.js';
import { withEngine } from '../with-engine.js';

export const push: Command = {
  name: 'push',
  args: '<url>',
  description: 'Pack a snapshot and upload it: with one PUT, as presigned URLs take it, or to a registry of images',
  options: [
    ['--tag <TAG>', 'The snapshot'],
    ['--description <TEXT>', 'Kept in the pack'],
    ['--base-image <NAME>', 'What it was made from; kept in the pack'],
    ['--sign <KEY>', 'Sign it: a private Ed25519 key in PEM (openssl genpkey -algorithm ed25519)'],
    ['--encrypt <AGE1...>', 'Encrypt it for this age recipient, or those in this file (repeatable)'],
    ['--json', 'Print one JSON object'],
  ],
  examples: [
    'forkd push --tag base oci://ghcr.io/team/base:v2',
    "forkd push --tag base 'https://bucket.example.com/base.forkd-snapshot.tar.zst?X-Amz-Signature=...'",
  ],
  run: (options) => {
    const target = options.one('URL');
    const reference = isArtifact(target) ? parseArtifact(target, 'URL', 'push') : undefined;
    const url = reference ? undefined : parseUrl(target, 'URL', 'push');
    const tag = options.required('tag');
    const [description, baseImage, sign] = ['description', 'base-image', 'sign'].map((name) => options.string(name));
    const request = {
      tag,
      ...(description === undefined ? {} : { description }),
      ...(baseImage === undefined ? {} : { baseImage }),
      ...(sign === undefined ? {} : { signingKey: readSigningKey(sign) }),
    };
    return withEngine(async (engine, signal) => {
      const recipients = await readRecipients(options.strings('encrypt'));
      const http = new Http();
      const bar = new Bar('   ', formatBytes);
      try {
        const hooks = {
          signal,
          onStep: step,
          onProgress: (done: number, total: number) => bar.update(done, total),
          onRetry: (reason: string, ms: number) => warn(`${reason}: trying again in ${formatMs(ms)}`),
        };
        const full = { ...request, recipients };
        const pushed = url
          ? await pushPack(http, engine.store, { ...full, url }, hooks)
          : await pushArtifact(http, engine.store, { ...full, reference: reference as Reference }, hooks);
        bar.end();
        line(`✓ '${tag}' is at ${'digest' in pushed ? pushed.reference : pushed.url} (${formatBytes(pushed.bytes)})`);
        if ('digest' in pushed)
          line(`  exactly this one: forkd pull oci://${pushed.reference.replace(/:[^:/]*$/, '')}@${pushed.digest}`);
        if (options.flag('json')) printJson(pushed);
        return 0;
      } finally {
        bar.end();
        await http.close();
      }
    });
  },
};
