/** Root disks made of images. What is in them is read with debugfs, which mounts nothing. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { compress } from 'zstd-napi';
import type { ForkdError } from '../../src/contract/errors.js';
import { decompressTo } from '../../src/main/oci/files.js';
import { buildRootfs, type Rootfs } from '../../src/main/oci/rootfs.js';
import { forkd } from '../support/cli.js';
import {
  type BuiltImage,
  buildImage,
  type Item,
  layer,
  ociArchive,
  savedArchive,
  sha,
  writeLayout,
} from '../support/oci.js';

const root = mkdtempSync(join(tmpdir(), 'oci-'));
const cache = join(root, 'cache');
let count = 0;

const debugfs = (disk: string, command: string): string =>
  execFileSync('/usr/sbin/debugfs', ['-R', command, disk], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });

const cat = (disk: string, path: string): string => debugfs(disk, `cat ${path}`);

/** Type, permissions, owner, group and links of a path. */
const stat = (disk: string, path: string): string => {
  const text = debugfs(disk, `stat ${path}`);
  const field = (pattern: RegExp): string => pattern.exec(text)?.[1] ?? '?';
  return [
    field(/Type: (\S+)/),
    field(/Mode: +(\d+)/),
    field(/User: +(\d+)/),
    field(/Group: +(\d+)/),
    field(/Links: (\d+)/),
  ].join(' ');
};

const names = (disk: string, path: string): string[] =>
  debugfs(disk, `ls -p ${path}`)
    .split('\n')
    .map((row) => row.split('/')[5] ?? '')
    .filter((name) => !['', '.', '..', 'lost+found'].includes(name))
    .sort();

const put = (name: string, content: Buffer): string => {
  const path = join(root, `${++count}-${name}`);
  writeFileSync(path, content);
  return path;
};

const build = (image: string, sizeMib?: number): Promise<Rootfs> =>
  buildRootfs(cache, { image, ...(sizeMib === undefined ? {} : { sizeMib }) });

const buildLayers = async (layers: Item[][], config: object = {}): Promise<Rootfs> => {
  const image = buildImage(await Promise.all(layers.map((items) => layer(items))), config);
  return build(writeLayout(join(root, `layout-${++count}`), image));
};

/** The error that a build ends with; the cache holds nothing new. */
const refusal = async (image: string): Promise<string> => {
  const before = existsSync(cache) ? readdirSync(cache).sort() : [];
  const outcome = await build(image).then(
    () => 'built',
    (error: ForkdError) => `${error.code} ${error.message}`,
  );
  if (outcome !== 'built')
    assert.equal(existsSync(cache) ? readdirSync(cache).sort() : [], before, 'something is left');
  assert.not(existsSync(join(root, 'escaped')));
  return outcome;
};

const refuseLayers = async (layers: Item[][]): Promise<string> => {
  const image = buildImage(await Promise.all(layers.map((items) => layer(items))));
  return refusal(writeLayout(join(root, `layout-${++count}`), image));
};

const small = async (mark = 'hello'): Promise<BuiltImage> =>
  buildImage(
    [
      await layer([
        { name: 'etc/', type: 'directory' },
        { name: 'etc/passwd', body: 'root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n' },
        { name: 'etc/group', body: 'root:x:0:\napp:x:1001:\nextra:x:7:app\n' },
      ]),
      await layer([{ name: 'hello', body: mark }]),
    ],
    {
      Env: ['A=1', 'PATH=/bin', 'B=two\\nlines\n'],
      WorkingDir: '/srv',
      User: 'app',
      Entrypoint: ['/hello'],
      Cmd: ['there'],
    },
  );

const oci = suite('oci images');

oci.after(() => rmSync(root, { recursive: true, force: true }));

oci('every form in which an image lies on a disk gives the same root, and is built once', async () => {
  const image = await small();
  const archive = await ociArchive(image);
  const saved = await savedArchive(image);
  const forms = [
    writeLayout(join(root, 'layout'), image),
    put('oci.tar', archive),
    put('oci.tar.gz', gzipSync(archive)),
    put('oci.tar.zst', Buffer.from(compress(archive))),
    put('saved.tar', saved),
    put('saved.tar.gz', gzipSync(saved)),
  ];
  const built: Rootfs[] = [];
  for (const form of forms) {
    const one = await build(form);
    built.push(one);
    assert.is(cat(one.path, '/hello'), 'hello', form);
    assert.is(
      cat(one.path, '/etc/forkd/image.conf'),
      'env A=1\nenv PATH=/bin\nenv B=two\\\\nlines\\n\nenv HOME=/home/app\ncwd /srv\nuid 1000\ngid 1001\ngroups 7\n',
    );
    assert.equal(one.record.config.entrypoint, ['/hello']);
    assert.equal([one.record.config.cmd, one.record.agent], [['there'], 'c']);
  }
  assert.equal(
    built.map(({ cached }) => cached),
    [false, true, true, true, false, true],
  );
  const larger = await build(forms[0] as string, 64);
  assert.not(larger.cached);
  assert.is(statSync(larger.path).size, 64 * 2 ** 20);
});

oci('a root file system, as a directory and as a tar', async () => {
  const dir = join(root, 'root-dir');
  mkdirSync(join(dir, 'usr/bin'), { recursive: true });
  writeFileSync(join(dir, 'usr/bin/python3.11'), '#!', { mode: 0o755 });
  symlinkSync('python3.11', join(dir, 'usr/bin/python3'));
  symlinkSync('usr/bin', join(dir, 'bin'));
  const first = await build(dir);
  assert.equal([first.record.agent, first.record.python], ['python', '/usr/bin/python3']);
  assert.equal(names(first.path, '/').sort(), ['bin', 'etc', 'usr']);
  assert.ok((await build(dir)).cached);
  writeFileSync(join(dir, 'new'), 'x');
  const second = await build(dir);
  assert.not(second.cached);
  assert.is(cat(second.path, '/new'), 'x');
  const archive = put('root.tar', execFileSync('tar', ['-C', dir, '-cf', '-', '.']));
  assert.is(cat((await build(archive)).path, '/new'), 'x');
});

oci('layers: whiteouts, opaque directories, replaced types', async () => {
  const { path } = await buildLayers([
    [
      { name: 'a/', type: 'directory' },
      { name: 'a/one', body: '1' },
      { name: 'a/two', body: '2' },
      { name: 'b/deep/er/file', body: 'x' },
      { name: 'c/kept', body: 'old' },
      { name: 'c/sub/x', body: 'old' },
      { name: 'file', body: 'a file' },
      { name: 'dir/in', body: 'x' },
      { name: 'link', type: 'symlink', to: 'a' },
    ],
    [
      // In any order: a whiteout is about lower layers only.
      { name: 'c/new', body: 'new' },
      { name: 'c/.wh..wh..opq' },
      { name: 'c/sub/y', body: 'new' },
      { name: 'a/.wh.one' },
      { name: 'a/three', body: '3' },
      { name: 'b/.wh.deep' },
      { name: '.wh.nothing' },
      { name: 'file/', type: 'directory' },
      { name: 'file/now', body: 'a directory' },
      { name: 'dir', body: 'now a file' },
      // Through a link of the lower layer, which leads to a/.
      { name: 'link/four', body: '4' },
    ],
    [{ name: 'a/one', body: 'again' }, { name: 'a/.wh.one' }],
  ]);
  assert.equal(names(path, '/a'), ['four', 'one', 'three', 'two']);
  assert.is(cat(path, '/a/one'), 'again');
  assert.equal(names(path, '/b'), []);
  assert.equal(names(path, '/c'), ['new', 'sub']);
  assert.equal(names(path, '/c/sub'), ['y']);
  assert.is(cat(path, '/file/now'), 'a directory');
  assert.is(cat(path, '/dir'), 'now a file');
  assert.match(stat(path, '/link'), /^symlink/);
});

const CAPABILITY = Buffer.from('0100000200200000000000000000000000000000', 'hex').toString('latin1');
const rich: Item[] = [
  { name: 'bin/su', body: 'su', mode: 0o4755 },
  { name: 'bin/secret', body: 's', mode: 0o400, uid: 33, gid: 34 },
  { name: 'bin/shared', body: 'x', mode: 0o666 },
  { name: 'bin/other', type: 'link', to: 'bin/shared' },
  { name: 'tmp/', type: 'directory', mode: 0o1777 },
  { name: 'home/', type: 'directory', mode: 0o700, uid: 1000, gid: 1001 },
  { name: 'home/link', type: 'symlink', to: '/nowhere', uid: 1000, gid: 1000 },
  { name: 'dev/null', type: 'character-device', mode: 0o666, devmajor: 1, devminor: 3 },
  { name: 'dev/disk', type: 'block-device', mode: 0o660, gid: 6, devmajor: 8, devminor: 1 },
  { name: 'run/pipe', type: 'fifo', mode: 0o600, uid: 5 },
  { name: 'a "quoted" name', body: 'q', uid: 1 },
  { name: `long/${'n'.repeat(200)}/${'m'.repeat(200)}`, body: 'long' },
  {
    name: 'ping',
    body: 'p',
    mode: 0o755,
    pax: { 'SCHILY.xattr.security.capability': CAPABILITY, 'SCHILY.xattr.user.note': 'n' },
  },
];

const checkRich = (path: string): void => {
  assert.is(stat(path, '/bin/su'), 'regular 04755 0 0 1');
  assert.is(stat(path, '/bin/secret'), 'regular 0400 33 34 1');
  assert.is(stat(path, '/bin/shared'), 'regular 0666 0 0 2');
  assert.is(stat(path, '/bin/other'), 'regular 0666 0 0 2');
  assert.is(stat(path, '/tmp'), 'directory 01777 0 0 2');
  assert.is(stat(path, '/home'), 'directory 0700 1000 1001 2');
  assert.is(stat(path, '/home/link'), 'symlink 0777 1000 1000 1');
  assert.is(stat(path, '/dev/null'), 'character 0666 0 0 1');
  assert.match(debugfs(path, 'stat /dev/null'), /Device major\/minor number: 01:03/);
  assert.is(stat(path, '/dev/disk'), 'block 0660 0 6 1');
  assert.is(stat(path, '/run/pipe'), 'FIFO 0600 5 0 1');
  assert.is(stat(path, '"/a ""quoted"" name"'), 'regular 0644 1 0 1');
  assert.is(cat(path, `/long/${'n'.repeat(200)}/${'m'.repeat(200)}`), 'long');
  const attributes = debugfs(path, 'ea_list /ping');
  assert.match(attributes, /security.capability \(20\) = 01 00 00 02 00 20/);
  assert.match(attributes, /user.note \(1\) = "n"/);
  assert.match(debugfs(path, 'stat /bin/su'), /mtime: .*Sun Sep {2}9 01:46:40 2001/);
};

oci('owners, setuid, hard links, devices, capabilities and times are kept', async () => {
  checkRich((await buildLayers([rich])).path);
});

oci('an ordinary user makes the same disk', async () => {
  if (process.getuid?.() !== 0) return;
  const layout = writeLayout(join(root, 'rich'), buildImage([await layer(rich)]));
  const home = join(root, 'nobody');
  mkdirSync(home);
  for (const path of [root, home]) execFileSync('chmod', ['0777', path]);
  const script = `
    const { buildRootfs } = await import(process.argv[1]);
    const { path } = await buildRootfs(process.argv[2], { image: process.argv[3] });
    console.log(path);`;
  const module = new URL('../../src/main/oci/rootfs.js', import.meta.url).href;
  const copy = join(home, 'dist');
  // The checkout may lie where only root can go.
  const isReachable =
    spawnSync('setpriv', ['--reuid=65534', '--clear-groups', 'test', '-r', new URL(module).pathname]).status === 0;
  assert.not(existsSync(copy));
  if (!isReachable) return;
  const ended = spawnSync(
    'setpriv',
    [
      '--reuid=65534',
      '--regid=65534',
      '--clear-groups',
      process.execPath,
      '--input-type=module',
      '-e',
      script,
      module,
      join(home, 'cache'),
      layout,
    ],
    { encoding: 'utf8', env: { ...process.env, HOME: home, TMPDIR: home } },
  );
  assert.is(ended.status, 0, ended.stderr);
  checkRich(ended.stdout.trim());
});

oci('names that lead out or cannot be are refused', async () => {
  const cases: [Item[], RegExp][] = [
    [[{ name: '../escaped', body: 'x' }], /leads up/],
    [[{ name: 'a/../../escaped', body: 'x' }], /leads up/],
    [[{ name: 'x', type: 'link', to: '../../etc/passwd' }], /leads up/],
    [[{ name: 'x', type: 'link', to: '/etc/passwd' }], /not there/],
    [
      [
        { name: 'd/', type: 'directory' },
        { name: 'x', type: 'link', to: 'd' },
      ],
      /is a directory/,
    ],
    [
      [
        { name: 'f', body: 'x' },
        { name: 'f/g', body: 'x' },
      ],
      /not a directory/,
    ],
    [
      [
        { name: 'l', type: 'symlink', to: 'l' },
        { name: 'l/g', body: 'x' },
      ],
      /circles/,
    ],
    [
      [
        { name: 'gone', type: 'symlink', to: '/nowhere' },
        { name: 'gone/g', body: 'x' },
      ],
      /not a directory/,
    ],
    [[{ name: 'x'.repeat(300), body: 'x' }], /too long/],
    [[], /nothing in it/],
  ];
  for (const [items, expected] of cases) {
    const outcome = await refuseLayers([items]);
    assert.match(outcome, /^IMAGE_INVALID /, JSON.stringify(items));
    assert.match(outcome, expected, JSON.stringify(items));
  }
});

oci('absolute names and links stay inside', async () => {
  const { path } = await buildLayers([
    [
      { name: '/abs', body: 'inside' },
      { name: 'out', type: 'symlink', to: join(root) },
      { name: 'up', type: 'symlink', to: '../../../../../..' },
      { name: root.slice(1), type: 'directory' },
    ],
    [
      { name: 'out/escaped', body: 'x' },
      { name: 'up/escaped-too', body: 'x' },
    ],
  ]);
  assert.is(cat(path, '/abs'), 'inside');
  assert.is(cat(path, join(root, 'escaped')), 'x', 'below the new root');
  assert.is(cat(path, '/escaped-too'), 'x');
  assert.not(existsSync(join(root, 'escaped')));
  assert.not(existsSync('/escaped-too'));
});

oci('lies, bombs and damage', async () => {
  // Not one that is in the cache: that would not be read again.
  const image = await small('hello, liar');
  const layout = (change: (image: BuiltImage) => BuiltImage | undefined): string => {
    const copy = { ...image, blobs: new Map(image.blobs) };
    return writeLayout(join(root, `layout-${++count}`), change(copy) ?? copy);
  };
  const [config = '', , upper = ''] = [...image.blobs.keys()];
  const swapped = layout(({ blobs }) => void blobs.set(upper, gzipSync(image.layers[0] as Buffer)));

  assert.match(await refusal(swapped), /^IMAGE_INVALID .*layer 2 of 2: its digest is another/);
  const forged = layout(
    ({ blobs }) => void blobs.set(config, Buffer.from(String(blobs.get(config)).replace('two', 'six'))),
  );
  assert.match(await refusal(forged), /^IMAGE_INVALID .*another digest/);
  const gone = layout(({ blobs }) => void blobs.delete(upper));
  assert.match(await refusal(gone), /^IMAGE_INVALID .*it has no blobs\/sha256/);
  const other = buildImage(image.layers, {}, 'gzip', { os: 'linux', architecture: 'arm64' });
  assert.match(await refusal(writeLayout(join(root, 'arm'), other)), /^IMAGE_UNSUPPORTED .*arm64/);
  const index = {
    schemaVersion: 2,
    manifests: [{ ...image.manifest, platform: { os: 'windows', architecture: 'amd64' } }],
  };
  const windows = layout(() => undefined);
  writeFileSync(join(windows, 'index.json'), JSON.stringify(index));
  assert.match(await refusal(windows), /^IMAGE_UNSUPPORTED .*windows/);
  for (const text of [
    '',
    '[]',
    '{}',
    '{"manifests":[{}]}',
    '{"manifests":[{"digest":"sha256:x","size":1}]}',
    `{"a":${'['.repeat(1e6)}`,
  ]) {
    writeFileSync(join(windows, 'index.json'), text);
    assert.match(await refusal(windows), /^IMAGE_(INVALID|UNSUPPORTED) /, text.slice(0, 40));
  }
  writeFileSync(join(windows, 'index.json'), Buffer.alloc(5 * 2 ** 20, ' '));
  assert.match(await refusal(windows), /^IMAGE_INVALID .*too large/);

  const zeros = Buffer.alloc(300 * 2 ** 20);
  const bomb = buildImage([await layer([{ name: 'zeros', body: zeros }])], {}, 'zstd');
  assert.match(await refusal(writeLayout(join(root, 'bomb'), bomb)), /^IMAGE_INVALID .*200 times/);
  const says = (gib: number): Item[] => [{ name: 'a', body: 'a', pax: { size: String(gib * 2 ** 30) } }];
  assert.match(await refuseLayers([says(40)]), /^IMAGE_INVALID .*truncated/);
  assert.match(await refuseLayers([says(70)]), /^IMAGE_INVALID .*it unpacks to too much/);
  const deep = { ...image, blobs: new Map(image.blobs) };
  for (let i = 0; i < 8; i++) {
    const nested = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [deep.manifest] }));
    deep.manifest = { ...deep.manifest, digest: `sha256:${sha(nested)}`, size: nested.length };
    deep.blobs.set(deep.manifest.digest, nested);
  }
  assert.match(await refusal(writeLayout(join(root, 'deep'), deep)), /^IMAGE_INVALID .*its index is wrong/);
  const saved = await savedArchive(image);
  const at = saved.indexOf('hello, liar');
  for (const flip of [at, at + 2, 130]) {
    const bad = Buffer.from(saved);
    bad[flip] = (bad[flip] as number) ^ 4;
    assert.match(await refusal(put('bad.tar', bad)), /^IMAGE_INVALID /, `byte ${flip}`);
  }
  const user = buildImage(image.layers, { User: 'nobody-here' });
  assert.match(await refusal(writeLayout(join(root, 'user'), user)), /^IMAGE_INVALID .*user 'nobody-here' is not in/);
});

oci('archives that are cut or changed anywhere are refused, or give the same', async () => {
  const archive = gzipSync(await ociArchive(await small('cut')));
  for (let i = 0; i < 12; i++) {
    const cut = archive.subarray(0, Math.floor((archive.length * i) / 12));
    assert.match(await refusal(put('cut.tar.gz', cut)), /^IMAGE_(INVALID|NOT_FOUND) /, `${cut.length} bytes`);
  }
  let seed = 7;
  const random = (max: number): number => {
    seed = (seed * 1103515245 + 12345) % 2 ** 31;
    return seed % max;
  };
  const plain = await ociArchive(await small('fuzzed'));
  for (let i = 0; i < 60; i++) {
    const bad = Buffer.from(plain);
    for (let n = 0; n <= i % 3; n++) bad[random(bad.length)] = random(256);
    const outcome = await refusal(put('fuzzed.tar', bad));
    assert.match(outcome, /^(built|IMAGE_\w+ )/, `round ${i}: ${outcome}`);
  }
});

oci('the tar reader: extensions, old forms, and what it refuses', async () => {
  const large = 'SCHILY.xattr.user.large';
  assert.match(
    await refuseLayers([[{ name: 'x', pax: { [large]: 'x'.repeat(1100 * 1024) } }]]),
    /extended header is too large/,
  );
  assert.match(await refuseLayers([[{ name: 'x', pax: { 'GNU.sparse.major': '1' } }]]), /sparse/);
  const gnu = execFileSync('sh', [
    '-c',
    `cd "$1" && mkdir -p ${'d'.repeat(150)} && echo deep >${'d'.repeat(150)}/f && tar --format=gnu -cf - ${'d'.repeat(150)}`,
    'sh',
    root,
  ]);
  const path = (await build(put('gnu.tar', gnu))).path;
  assert.is(cat(path, `/${'d'.repeat(150)}/f`), 'deep\n');
  const v7 = execFileSync('tar', ['--format=v7', '-C', join(root, 'layout'), '-cf', '-', 'oci-layout']);
  assert.match(cat((await build(put('v7.tar', v7))).path, '/oci-layout'), /imageLayoutVersion/);
});

oci('two builds at once, and one that is interrupted', async () => {
  const layout = writeLayout(join(root, 'twice'), buildImage([await layer([{ name: 'x', body: sha('x') }])]));
  const [one, other] = await Promise.all([build(layout), build(layout)]);
  assert.is(one.path, other.path);
  const controller = new AbortController();
  const big = writeLayout(
    join(root, 'big'),
    buildImage([await layer([{ name: 'x', body: Buffer.alloc(3e6, 'x') }])], {}, 'plain'),
  );
  const before = readdirSync(cache).sort();
  const code = await buildRootfs(
    cache,
    { image: big },
    { signal: controller.signal, onProgress: () => controller.abort() },
  ).catch((error: ForkdError) => error.code);
  assert.is(code, 'CANCELLED');
  assert.equal(readdirSync(cache).sort(), before);
});

oci('an image of a Docker engine, by its socket', async () => {
  const saved = await savedArchive(await small());
  const socket = join(root, 'docker.sock');
  const heard: string[] = [];
  const engine = createServer((request, response) => {
    heard.push(`${request.method} ${request.url}`);
    if (request.url === '/images/team/app%3A1/get')
      response.writeHead(200, { 'content-type': 'application/x-tar' }).end(saved);
    else response.writeHead(404).end(JSON.stringify({ message: 'No such image: nothing:latest' }));
  });
  await new Promise<void>((resolve) => engine.listen(socket, resolve));
  const code = (image: string): Promise<string> =>
    build(image).then(
      () => 'built',
      (error: ForkdError) => `${error.code} ${error.message}`,
    );
  try {
    process.env['DOCKER_HOST'] = `unix://${socket}`;
    const { path } = await build('docker-daemon:team/app:1');
    assert.is(cat(path, '/hello'), 'hello');
    assert.equal(heard, ['GET /images/team/app%3A1/get']);
    assert.match(await code('docker-daemon:nothing'), /^IMAGE_NOT_FOUND .*No such image: nothing:latest/);
    assert.match(await code('docker-daemon:../../../etc'), /^IMAGE_NOT_FOUND .*not the name/);
    process.env['DOCKER_HOST'] = 'tcp://127.0.0.1:2375';
    assert.match(await code('docker-daemon:app'), /^IMAGE_UNSUPPORTED .*unix/);
    process.env['DOCKER_HOST'] = `unix://${root}/nobody.sock`;
    assert.match(await code('docker-daemon:app'), /^IMAGE_NOT_FOUND .*no Docker engine answers/);
  } finally {
    delete process.env['DOCKER_HOST'];
    engine.close();
  }
});

oci('a compressed archive is unpacked no further than somebody waits for it', async () => {
  const bytes = 200 * 1024 * 1024;
  const image = put('large.tar.zst', Buffer.from(compress(Buffer.alloc(bytes, 'x'))));
  const [out, controller] = [join(root, 'large.tar'), new AbortController()];
  const unpacking = decompressTo(image, out, controller.signal).catch((error: Error) => error.name);
  setTimeout(() => controller.abort(), 5);
  assert.is(await unpacking, 'AbortError');
  assert.ok((statSync(out, { throwIfNoEntry: false })?.size ?? 0) < bytes);
  rmSync(out, { force: true });
});

oci('the command: parent build', async () => {
  const image = put('cli.tar', await savedArchive(await small()));
  const env = { FORKD_RUN_CACHE: join(root, 'cli-cache'), XDG_DATA_HOME: join(root, 'cli-data') };
  const out = join(root, 'out.ext4');
  const { code, stdout, stderr } = await forkd(['parent', 'build', image, '-o', out, '--json'], { env });
  assert.is(code, 0, stderr);
  assert.equal((JSON.parse(stdout) as { config: { cmd: string[] } }).config.cmd, ['there']);
  assert.is(cat(out, '/hello'), 'hello');
  const roomy = await forkd(['parent', 'build', image, '-o', out, '--size-mib', '1024'], { env });
  assert.is(roomy.code, 0, roomy.stderr);
  assert.is(cat(out, '/hello'), 'hello');
  assert.is(statSync(out).size, 1024 * 1024 * 1024);
  assert.ok(statSync(out).blocks * 512 < 8 * 1024 * 1024, 'room takes no space');
  const again = await forkd(['parent', 'build', image], { env, cwd: root });
  assert.is(again.code, 0, again.stderr);
  assert.match(again.stderr, /nothing has changed/);
  assert.is((await forkd(['parent', 'build', './nothing.tar'], { env })).code, 1);
  for (const args of [['parent'], ['parent', 'build'], ['parent', 'make', image]])
    assert.is((await forkd(args, { env })).code, 2);
});

oci.run();
