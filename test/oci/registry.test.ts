/** Registries on loopback: images and packs, users and tokens, and registries that lie, break off or never end. */
import { randomBytes } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { Http } from '../../src/http/client.js';
import { pullsDir } from '../../src/main/hub/pull.js';
import { blobsDir, buildRootfs } from '../../src/main/oci/rootfs.js';
import { parseArtifact, pullArtifact, pushArtifact } from '../../src/main/registry/artifact.js';
import { registryImage } from '../../src/main/registry/image.js';
import { parseReference, type Reference, showReference } from '../../src/main/registry/reference.js';
import { Store } from '../../src/main/store/store.js';
import { forkd } from '../support/cli.js';
import { putBase, putDisk } from '../support/layers.js';
import { type BuiltImage, buildImage, layer, sha } from '../support/oci.js';
import { type RegistryOptions, startRegistry, type TestRegistry } from '../support/registry.js';

const root = mkdtempSync(join(tmpdir(), 'registry-'));
const cache = join(root, 'cache');
const login = join(root, 'login');
let image: BuiltImage;

const test = suite('registries');

test.before(async () => {
  mkdirSync(login);
  process.env['DOCKER_CONFIG'] = login;
  delete process.env['REGISTRY_AUTH_FILE'];
  image = buildImage([
    await layer([{ name: 'etc/hello', body: 'hello' }]),
    await layer([{ name: 'noise', body: randomBytes(500_000) }]),
    // The same once more.
    await layer([{ name: 'etc/hello', body: 'hello' }]),
  ]);
});
test.after(() => {
  rmSync(root, { recursive: true, force: true });
});
test.before.each(() => {
  rmSync(cache, { recursive: true, force: true });
  writeFileSync(join(login, 'config.json'), '{}');
});

const withRegistry = async (
  options: RegistryOptions,
  use: (registry: TestRegistry) => Promise<void>,
): Promise<void> => {
  const registry = await startRegistry(options);
  try {
    await use(registry);
  } finally {
    await registry.close();
  }
};

const outcomeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'done',
    (error: unknown) => (error instanceof ForkdError ? `${error.code} ${error.message}` : String(error)),
  );

/** Of a build: `done`, or the error. */
const build = (name: string): Promise<string> => outcomeOf(buildRootfs(cache, { image: name }));
const parts = (): string[] => (existsSync(blobsDir(cache)) ? readdirSync(blobsDir(cache)) : []);

/** Puts an index for two platforms under a tag. */
const putIndex = (registry: TestRegistry, name: string, amd64: BuiltImage): void => {
  const other = buildImage([], {}, 'gzip', { os: 'linux', architecture: 'arm64' });
  const [repository = ''] = name.split(':');
  const manifests = [other, amd64].map((one, i) => {
    registry.put(`${repository}:part${i}`, one);
    return { ...one.manifest, platform: { os: 'linux', architecture: i === 0 ? 'arm64' : 'amd64' } };
  });
  registry.manifests.set(
    name,
    Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: 'application/vnd.oci.image.index.v1+json', manifests })),
  );
};

test('references are read as Docker reads them', () => {
  const shown = (text: string): string | undefined => {
    const found = parseReference(text);
    return found && showReference(found);
  };
  const digest = `sha256:${'a'.repeat(64)}`;
  assert.is(shown('debian'), 'docker.io/library/debian:latest');
  assert.is(shown('debian:12'), 'docker.io/library/debian:12');
  assert.is(shown('owner/app'), 'docker.io/owner/app:latest');
  assert.is(shown('localhost/app:1'), 'localhost/app:1');
  assert.is(shown('ghcr.io/a/b/c'), 'ghcr.io/a/b/c:latest');
  assert.is(shown('127.0.0.1:5000/app'), '127.0.0.1:5000/app:latest');
  assert.is(shown(`app@${digest}`), `docker.io/library/app@${digest}`);
  assert.is(shown(`app:1@${digest}`), `docker.io/library/app:1@${digest}`);
  const wrong = [
    '',
    'A',
    'a b',
    'a//b',
    'a:b:c',
    'app@sha256:1',
    '../a',
    'a/../b',
    'host:x/app',
    'a@b@c',
    'https://x.y/z',
  ];
  for (const text of [...wrong, 'x'.repeat(300), 'host.name/', 'app:', 'user@host.name/app'])
    assert.is(parseReference(text), undefined, text);
});

test('by tag and by digest, out of an index, with a token; blobs elsewhere get no credentials; a second time nothing is read', async () => {
  await withRegistry({ auth: 'token', user: 'me:secret' }, async (registry) => {
    const auth = Buffer.from('me:secret').toString('base64');
    writeFileSync(join(login, 'config.json'), JSON.stringify({ auths: { [registry.host]: { auth } } }));
    putIndex(registry, 'team/app:v1', image);
    const name = `${registry.host}/team/app:v1`;
    const progress: number[] = [];
    const { record } = await buildRootfs(
      cache,
      { image: name },
      { onProgress: (done, total) => progress.push(done / total) },
    );
    assert.is(progress.at(-1), 1);
    assert.ok(registry.heard.some(({ headers }) => headers.authorization?.startsWith('Bearer ')));
    const asked = registry.storeHeard.map(({ path }) => path.slice(1)).filter((path) => layersOf(image).includes(path));
    assert.is(asked.length, 2, 'each layer once');
    const before = registry.storeHeard.length;
    for (const { headers } of registry.storeHeard) assert.is(headers.authorization, undefined);
    assert.equal(parts(), []);
    const pinned = await buildRootfs(cache, { image: `${registry.host}/team/app@${image.manifest.digest}` });
    assert.equal([pinned.cached, pinned.record.blake3], [true, record.blake3]);
    assert.is(registry.storeHeard.length, before + 1, 'its configuration only');
  });
});

test('users: from the configuration, from a helper, by Basic; without one and with a wrong one', async () => {
  await withRegistry({ auth: 'token', user: 'me:secret' }, async (registry) => {
    registry.put('app:1', image);
    const name = `${registry.host}/app:1`;
    assert.match(await build(name), /^REGISTRY_DENIED .*app:1/);
    const config = (value: object) => writeFileSync(join(login, 'config.json'), JSON.stringify(value));
    config({ auths: { [registry.host]: { auth: Buffer.from('me:wrong').toString('base64') } } });
    assert.match(await build(name), /^REGISTRY_DENIED /);
    writeFileSync(join(login, 'config.json'), '{"auths":');
    assert.match(await build(name), /^CREDENTIALS_UNREADABLE .*config\.json/);
    const helper = join(login, 'docker-credential-test');
    const script = `#!/bin/sh\nread -r server\n[ "$1 $server" = "get ${registry.host}" ] && echo '{"Username":"me","Secret":"secret"}'\n`;
    writeFileSync(helper, script);
    chmodSync(helper, 0o755);
    const path = process.env['PATH'];
    process.env['PATH'] = `${login}:${path}`;
    config({ credsStore: 'test' });
    assert.is(await build(name), 'done');
    process.env['PATH'] = path;
    config({ credsStore: '../../evil' });
    assert.match(await build(name), /^CREDENTIALS_UNREADABLE /);
  });
  await withRegistry({ auth: 'basic', user: 'me:secret' }, async (registry) => {
    registry.put('app:1', image);
    const auths = { [`https://${registry.host}/v1/`]: { auth: Buffer.from('me:secret').toString('base64') } };
    writeFileSync(join(login, 'config.json'), JSON.stringify({ auths }));
    assert.is(await build(`${registry.host}/app:1`), 'done');
    assert.match(await build(`${registry.host}/app:2`), /^REGISTRY_NOT_FOUND .*manifest_unknown/);
  });
});

test('what breaks off goes on where it stopped, also in the next try', async () => {
  const ranges: string[] = [];
  let breaks = 1;
  const large = image.blobs.get(layersOf(image)[1] as string) as Buffer;
  const beforeBlob: RegistryOptions['beforeBlob'] = ({ headers, path }, response) => {
    ranges.push(headers.range ?? 'all');
    if (!path.endsWith(sha(large)) || breaks-- <= 0) return false;
    response.writeHead(200, { 'content-length': large.length });
    response.write(large.subarray(0, 200_000), () => response.destroy());
    return true;
  };
  await withRegistry({ beforeBlob }, async (registry) => {
    registry.put('app:1', image);
    assert.is(await build(`${registry.host}/app:1`), 'done');
    assert.match(ranges.at(-1) ?? '', /^bytes=[1-9]\d*-$/);
    rmSync(cache, { recursive: true });

    const stopped = new AbortController();
    const hooks = { signal: stopped.signal, onProgress: (done: number) => void (done > 100_000 && stopped.abort()) };
    breaks = 1;
    assert.match(await outcomeOf(buildRootfs(cache, { image: `${registry.host}/app:1` }, hooks)), /^CANCELLED/);
    assert.ok(parts().length > 0, 'kept for the next try');
    ranges.length = 0;
    assert.is(await build(`${registry.host}/app:1`), 'done');
    assert.match(ranges.join(' '), /bytes=[1-9]\d*-/);
    assert.equal(parts(), []);
  });
});

const layersOf = (built: BuiltImage): string[] =>
  (JSON.parse(String(built.blobs.get(built.manifest.digest))) as { layers: { digest: string }[] }).layers.map(
    ({ digest }) => digest,
  );

test('registries that lie, or never end', async () => {
  const [first = ''] = layersOf(image);
  const forged = (change: (registry: TestRegistry) => void, expected: RegExp, options: RegistryOptions = {}) =>
    withRegistry(options, async (registry) => {
      registry.put('app:1', image);
      change(registry);
      const outcome = await build(
        `${registry.host}/app${registry.manifests.has('app:pinned') ? `@${image.manifest.digest}` : ':1'}`,
      );
      assert.match(outcome, expected);
      assert.equal(parts(), []);
      assert.equal(existsSync(cache) ? readdirSync(cache).filter((one) => one !== 'blobs') : [], []);
    });
  const sameSize = Buffer.from(image.blobs.get(first) as Buffer);
  sameSize[20] = (sameSize[20] as number) ^ 1;
  await forged(({ blobs }) => void blobs.set(first, sameSize), /^IMAGE_INVALID .*layer 1 of 3/);
  await forged(({ blobs }) => void blobs.set(first, Buffer.concat([sameSize, sameSize])), /^TRANSFER_REFUSED .*bytes/);
  await forged(({ manifests }) => {
    manifests.set('app:pinned', Buffer.from('{}'));
    manifests.set(`app:${image.manifest.digest}`, Buffer.from('{}'));
  }, /^TRANSFER_REFUSED .*digest/);
  await forged(({ manifests }) => void manifests.set('app:1', Buffer.from('{"layers":[]}')), /^IMAGE_INVALID /);
  await forged(({ manifests }) => void manifests.set('app:1', Buffer.from('[')), /^IMAGE_INVALID /);
  const endless: RegistryOptions['before'] = (_, response) => {
    response.writeHead(200, { 'content-type': 'application/json' });
    const more = (): void =>
      void (!response.destroyed && response.write(' '.repeat(1024 * 1024), () => setImmediate(more)));
    more();
    return true;
  };
  await forged(() => undefined, /^TRANSFER_REFUSED .*more than/, { before: endless });
  const realm =
    (value: string): NonNullable<RegistryOptions['before']> =>
    (_, response) => {
      response.writeHead(401, { 'www-authenticate': `Bearer realm="${value}"` }).end();
      return true;
    };
  await forged(() => undefined, /^TRANSFER_REFUSED .*ftp:/, { before: realm('ftp://example.com/token') });
  await forged(() => undefined, /^TRANSFER_REFUSED .*not a URL/, { before: realm('token') });
  const away: RegistryOptions['beforeBlob'] = (_, response) => {
    response.writeHead(302, { location: 'file:///etc/passwd' }).end();
    return true;
  };
  await forged(() => undefined, /^TRANSFER_REFUSED .*file:/, { beforeBlob: away });
  const http = new Http({ tries: 2, backoffMs: 5 });
  const nobody = parseReference('127.0.0.1:1/app') as Reference;
  assert.match(
    await outcomeOf(registryImage('app', nobody, blobsDir(cache), {}, http)),
    /^HUB_UNREACHABLE .*127\.0\.0\.1:1/,
  );
});

test('snapshots: pushed in pieces, what is there is not sent again, pulled by tag and by digest', async () => {
  const noise = randomBytes(3_000_000);
  const path = join(root, 'disk');
  const disk = putDisk(path, noise);
  const from = new Store(join(root, 'data/forkd/snapshots'));
  const to = new Store(join(root, 'to'));
  putBase(from, 'base', { 1: 1 }, { kernel: disk, initrd: disk, rootfs: path, rootfs_digest: disk });
  const http = new Http({ tries: 2, backoffMs: 5 });
  let broken = 0;
  const beforeBlob: RegistryOptions['beforeBlob'] = ({ headers }, response) => {
    if (broken++ !== 1 || headers.range) return false;
    response.writeHead(200, { 'content-length': 1_000_000 });
    response.write(Buffer.alloc(1000), () => response.destroy());
    return true;
  };
  await withRegistry({ auth: 'token', beforeBlob }, async (registry) => {
    const reference = parseArtifact(`oci://${registry.host}/team/base:v1`, 'URL', 'push');
    const push = (piece: number) => pushArtifact(http, from, { tag: 'base', reference }, {}, piece);
    const pull = (one: Reference) => outcomeOf(pullArtifact(http, to, { reference: one, tag: 'base' }));
    const pushed = await push(1_000_000);
    assert.equal([pushed.bytes_there, registry.blobs.size], [0, 1 + Math.ceil(pushed.bytes / 1_000_000)]);
    // The second piece breaks off after bytes that are wrong.
    assert.match(await pull(reference), /^TRANSFER_REFUSED .*digest/);
    assert.is(await pull(reference), 'done', 'and begins anew');
    assert.is(to.manifest('base').memory_root, from.manifest('base').memory_root);
    to.remove('base');
    const pinned = parseArtifact(`oci://${registry.host}/team/base@${pushed.digest}`, 'URL', 'pull');
    assert.is(await pull(pinned), 'done');
    assert.match(await pull(pinned), /^SNAPSHOT_EXISTS/);
    to.remove('base');
    assert.equal(existsSync(pullsDir(to.root)) ? readdirSync(pullsDir(to.root)) : [], []);

    registry.put('team/app:1', image);
    assert.match(
      await pull(parseArtifact(`oci://${registry.host}/team/app:1`, 'URL', 'pull')),
      /^TRANSFER_REFUSED .*not a snapshot/,
    );
    const env = { XDG_DATA_HOME: join(root, 'data'), TMPDIR: root, DOCKER_CONFIG: login };
    const target = `oci://${registry.host}/team/cli:v1`;
    const ended = await forkd(['push', '--tag', 'base', target, '--json'], { env });
    assert.is(ended.code, 0, ended.stderr);
    const again = await forkd(['pull', target, '--force', '--tag', 'copy'], { env });
    assert.match(again.stderr, /snapshot 'copy'/);
    assert.match((await forkd(['pull', 'oci://Bad Name'], { env })).stderr, /oci:\/\/HOST/);
  });
  await http.close();
});

test.run();
