/** What packaging/ says to service managers and container runtimes, against the code: names, ports and paths that must be the same. */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { suite } from '../support/suite.js';

const ROOT = join(import.meta.dirname, '../../..');
const read = (path: string): string => readFileSync(join(ROOT, path), 'utf8');
const filesIn = (dir: string): string[] =>
  readdirSync(join(ROOT, dir)).flatMap((name) => {
    const path = join(dir, name);
    return statSync(join(ROOT, path)).isDirectory() ? filesIn(path) : [path];
  });
const all = (text: string, pattern: RegExp): string[] => [...text.matchAll(pattern)].map((found) => found[1] ?? '');

const dockerfile = read('packaging/docker/Dockerfile');
const manifest = read('packaging/kubernetes/forkd.yaml');
const unit = read('packaging/systemd/forkd-controller.service');

/** `KEY=VALUE` of lines that begin with `word`. */
const environment = (text: string, word: string): Map<string, string> =>
  new Map(
    all(text, new RegExp(`^${word}(.*)$`, 'gm'))
      .flatMap((line) => line.trim().split(/\s+/))
      .map((pair): [string, string] => [pair.split('=')[0] ?? '', pair.slice(pair.indexOf('=') + 1)]),
  );
const ofImage = environment(dockerfile, 'ENV ');
const ofUnit = environment(unit, 'Environment=');
const isBelow = (path: string | undefined, dirs: string[]): boolean =>
  dirs.some((dir) => path === dir || path?.startsWith(`${dir}/`));

const packaging = suite('packaging');

packaging('every variable that is set is read by somebody', () => {
  const sources = filesIn('src')
    .filter((path) => path.endsWith('.ts'))
    .map(read)
    .join('');
  for (const path of filesIn('packaging'))
    for (const name of all(read(path), /\b(FORKD_[A-Z_]+)\b/g))
      assert.ok(sources.includes(`'${name}'`), `${path}: ${name}`);
});

packaging('the port is the default one, everywhere', () => {
  const [byDefault = ''] = all(read('src/cli/commands/daemon.ts'), /\?\? '127\.0\.0\.1:(\d+)'/g);
  const named = [
    ...all(dockerfile, /^EXPOSE (\d+)$/gm),
    ...all(ofImage.get('FORKD_BIND') ?? '', /:(\d+)$/g),
    ...all(dockerfile, /127\.0\.0\.1:(\d+)\/healthz/g),
    ...all(manifest, /(?:containerPort|port): "?(\d{4,})"?/g),
  ];
  assert.ok(named.length >= 6, String(named));
  assert.equal([...new Set(named)], [byDefault]);
});

packaging('in a container nothing is written but to volumes, and what snapshots need is on the one that stays', () => {
  const mounts = all(manifest, /mountPath: ([^ ,}]+)/g);
  const lasting = all(dockerfile, /^VOLUME (\S+)$/gm);
  for (const name of ['HOME', 'TMPDIR', 'FORKD_RUN_CACHE', 'FORKD_TOKEN_FILE', 'FORKD_AUDIT_LOG'])
    assert.ok(isBelow(ofImage.get(name), mounts), `${name} is below none of ${mounts}`);
  for (const path of [join(ofImage.get('XDG_DATA_HOME') ?? '', 'forkd'), ofImage.get('FORKD_RUN_CACHE')]) {
    assert.ok(isBelow(path, lasting), path);
    assert.match(manifest, new RegExp(`name: data, mountPath: ${lasting[0]}\\b`));
  }
});

packaging("the unit's data and images are in its state directory, its sockets in its runtime directory", () => {
  const [state = ''] = all(unit, /^StateDirectory=(\S+)$/gm);
  const [runtime = ''] = all(unit, /^RuntimeDirectory=(\S+)$/gm);
  assert.is(join(ofUnit.get('XDG_DATA_HOME') ?? '', 'forkd'), join('/var/lib', state));
  assert.ok(isBelow(ofUnit.get('FORKD_RUN_CACHE'), [join('/var/lib', state)]));
  for (const name of ['TMPDIR', 'FORKD_SOCKET']) assert.ok(isBelow(ofUnit.get(name), [join('/run', runtime)]), name);
  const [command = ''] = all(unit, /^ExecStart=(\S+)/gm);
  const { bin } = JSON.parse(read('package.json')) as { bin: Record<string, string> };
  assert.ok(Object.keys(bin).includes(command.split('/').at(-1) ?? ''), command);
});

packaging.run();
