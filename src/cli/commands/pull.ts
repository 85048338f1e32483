import { isTag } from '../../contract/names.js';
import { formatBytes, formatMs } from '../../contract/units.js';
import { Http, parseUrl } from '../../http/client.js';
import { pullLazy } from '../../main/hub/pull-lazy.js';
import { pull as pullPack } from '../../main/hub/pull.js';
import { DEFAULT_HUB, findPackage, isPackageName, type PackSource } from '../../main/hub/registry.js';
import { readIdentities } from '../../main/hub/age.js';
import { readTrustedKey } from '../../main/hub/signature.js';
import { isArtifact, parseArtifact, pullArtifact } from '../../main/registry/artifact.js';
import type { Reference } from '../../main/registry/reference.js';
import { snapshotsDir } from '../../main/paths.js';
import { Store } from '../../main/store/store.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
import { Bar, line, step, warn } from '../progress.js';
import { printJson } from '../render.js';
import { diskOf, toldOf } from '../taken.js';
import { withEngine } from '../with-engine.js';

export const pull: Command = {
  name: 'pull',
  args: '<target>',
  description:
    'Download a pack and unpack it: from a URL, a registry of images, or OWNER/NAME[@VERSION] from a hub. Of a TAG that was pulled with --lazy, bring the rest',
  options: [
    ['--tag <TAG>', 'Another name for the snapshot'],
    ['--force', 'Replace an existing tag'],
    ['--lazy', 'Make the tag at once, and fetch of it what is needed when it is forked'],
    ['--hub <URL>', 'The registry.json that knows OWNER/NAME (FORKD_HUB_URL)'],
    ['--sha256 <HEX>', 'What the pack must hash to, when a URL is given; a hub says it itself'],
    ['--trust <KEY>', 'Take it only if it is signed by this public Ed25519 key in PEM (repeatable: by one of them)'],
    ['--identity <FILE>', 'Your age identity (AGE-SECRET-KEY-...), for an encrypted pack (repeatable)'],
    ['--disk <PATH>', 'Take only the root disk, into this file: also of a pack whose VM only another engine can run'],
    ['--json', 'Print one JSON object'],
  ],
  examples: [
    'forkd pull oci://ghcr.io/team/base:v2',
    'forkd pull --lazy https://example.com/base.forkd-snapshot.tar.zst && forkd fork --tag base -n 10 -- hostname',
    'forkd pull https://example.com/base.forkd-snapshot.tar.zst --trust key.pub',
    'forkd pull team/base@v2 --hub https://example.com/registry.json',
  ],
  run: (options) => {
    const target = options.one('TARGET');
    if (isTag(target) && new Store(snapshotsDir()).exists(target)) return rest(options, target);
    const lazy = options.flag('lazy');
    const reference = isArtifact(target) ? parseArtifact(target, 'TARGET', 'pull') : undefined;
    if (reference && lazy) throw options.wrong('--lazy', 'needs a URL or a hub: a registry has a pack in pieces');
    const find = reference ? undefined : finder(options, target);
    const tag = options.string('tag');
    const disk = diskOf(options);
    if (disk !== undefined && lazy) throw options.wrong('--disk', 'is fetched whole: leave --lazy out');
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
          ...(disk === undefined ? {} : { disk }),
        };
        const hooks = {
          signal,
          onStep: step,
          onProgress: (done: number, total: number) => bar.update(done, Math.max(done, total)),
          onRetry: (reason: string, ms: number) => warn(`${reason}: trying again in ${formatMs(ms)}`),
        };
        if (find && lazy) {
          const started = await pullLazy(http, engine.store, { ...(await find(http, signal)), ...request }, hooks);
          line(
            `✓ snapshot '${started.tag}' can be forked; ${formatBytes(started.fetched_bytes)} of ${formatBytes(started.bytes)} fetched`,
          );
          if (started.working_set_chunks === 0)
            line(
              '  nobody forked it before it was packed: what it needs first is not known, and the first fork will be slow',
            );
          line(`  the rest comes as it is needed, or with: forkd pull ${started.tag}`);
          if (options.flag('json')) printJson(started);
          return 0;
        }
        const pulled = find
          ? await pullPack(http, engine.store, { ...(await find(http, signal)), ...request }, engine.pool, hooks)
          : await pullArtifact(http, engine.store, { ...request, reference: reference as Reference }, hooks);
        bar.end();
        line(`✓ ${toldOf(pulled)}, ${formatBytes(pulled.bytes)} downloaded`);
        if (options.flag('json')) printJson(pulled);
        return 0;
      } finally {
        bar.end();
        await http.close();
      }
    });
  },
};

/** Completes a tag that was pulled with --lazy. */
const rest = (options: Options, tag: string): Promise<number> =>
  withEngine(async (engine, signal) => {
    const bar = new Bar('   ', formatBytes);
    try {
      const isPartial = engine.store.isPartial(tag);
      if (isPartial) await engine.complete(tag, { signal, onProgress: (done, total) => bar.update(done, total) });
      bar.end();
      line(`✓ snapshot '${tag}' is ${isPartial ? 'whole' : 'here already'}`);
      if (options.flag('json')) printJson({ tag, dir: engine.store.dir(tag) });
      return 0;
    } finally {
      bar.end();
    }
  });

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
