import { formatBytes, formatMs } from '../../contract/units.js';
import { Http, parseUrl } from '../../main/http/client.js';
import { pull as pullPack } from '../../main/hub/pull.js';
import { DEFAULT_HUB, findPackage, isPackageName, type PackSource } from '../../main/hub/registry.js';
import { readIdentities } from '../../main/hub/age.js';
import { readTrustedKey } from '../../main/hub/signature.js';
import { isArtifact, parseArtifact, pullArtifact } from '../../main/registry/artifact.js';
import type { Reference } from '../../main/registry/reference.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
import { Bar, line, step, warn } from '../progress.js';
import { printJson } from '../render.js';
import { withEngine } from '../with-engine.js';

export const pull: Command = {
  name: 'pull',
  args: '<target>',
  description: 'Download a pack and unpack it: from a URL, a registry of images, or OWNER/NAME[@VERSION] from a hub',
  options: [
    ['--tag <TAG>', 'Another name for the snapshot'],
    ['--force', 'Replace an existing tag'],
    ['--hub <URL>', 'The registry.json that knows OWNER/NAME (FORKD_HUB_URL)'],
    ['--sha256 <HEX>', 'What the pack must hash to, when a URL is given; a hub says it itself'],
    ['--trust <KEY>', 'Take it only if it is signed by this public Ed25519 key in PEM (repeatable: by one of them)'],
    ['--identity <FILE>', 'Your age identity (AGE-SECRET-KEY-...), for an encrypted pack (repeatable)'],
    ['--json', 'Print one JSON object'],
  ],
  examples: [
    'forkd pull oci://ghcr.io/team/base:v2',
    'forkd pull https://example.com/base.forkd-snapshot.tar.zst --trust key.pub',
    'forkd pull team/base@v2 --hub https://example.com/registry.json',
  ],
  run: (options) => {
    const target = options.one('TARGET');
    const reference = isArtifact(target) ? parseArtifact(target, 'TARGET', 'pull') : undefined;
    const find = reference ? undefined : finder(options, target);
    const tag = options.string('tag');
    const trusted = options.strings('trust').map(readTrustedKey);
    return withEngine(async (engine, signal) => {
      const identities = await readIdentities(options.strings('identity'));
      const http = new Http();
      const bar = new Bar('   ', formatBytes);
      try {
        const request = {
          trusted,
          identities,
          force: options.flag('force'),
          ...(tag === undefined ? {} : { tag }),
        };
        const hooks = {
          signal,
          onStep: step,
          onProgress: (done: number, total: number) => bar.update(done, Math.max(done, total)),
          onRetry: (reason: string, ms: number) => warn(`${reason}: trying again in ${formatMs(ms)}`),
        };
        const pulled = find
          ? await pullPack(http, engine.store, { ...(await find(http, signal)), ...request }, engine.pool, hooks)
          : await pullArtifact(
              http,
              engine.store,
              { ...request, reference: reference as Reference },
              engine.pool,
              hooks,
            );
        bar.end();
        line(`✓ snapshot '${pulled.tag}' in ${pulled.dir} (${formatBytes(pulled.bytes)} downloaded)`);
        if (options.flag('json')) printJson(pulled);
        return 0;
      } finally {
        bar.end();
        await http.close();
      }
    });
  },
};

/** What is wrong in the command line is said before anything is started. */
const finder = (options: Options, target: string): ((http: Http, signal: AbortSignal) => Promise<PackSource>) => {
  const sha256 = options.string('sha256')?.toLowerCase();
  if (sha256 !== undefined && !/^[0-9a-f]{64}$/.test(sha256)) throw options.wrong('--sha256', 'is not 64 hex digits');
  if (/^https?:/i.test(target)) {
    const url = parseUrl(target, 'TARGET', 'pull');
    return async () => ({ url, ...(sha256 === undefined ? {} : { sha256 }) });
  }
  if (!isPackageName(target))
    throw options.wrong('TARGET', `'${target}' is neither a URL, nor oci://HOST/NAME:TAG, nor OWNER/NAME[@VERSION]`);
  const hub = parseUrl(options.string('hub', { env: 'FORKD_HUB_URL' }) ?? DEFAULT_HUB, '--hub', 'pull');
  return async (http, signal) => {
    step(`looking up ${target}`);
    return { ...(await findPackage(http, hub, target, signal)), ...(sha256 === undefined ? {} : { sha256 }) };
  };
};
