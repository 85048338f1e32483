/** Snapshots of container images, and commands in them, end to end. */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { ForkdError } from '../../src/contract/errors.js';
import { Engine } from '../../src/main/engine.js';
import { buildDefaultImage } from '../../src/main/image/index.js';
import { buildRootfs } from '../../src/main/oci/rootfs.js';
import { runImage, runTag, snapshotImage, withInstall } from '../../src/main/from-image.js';
import { installPackages } from '../../src/main/host/packages.js';
import { busyboxImage } from '../support/busybox.js';
import { CLI, forkd, start } from '../support/cli.js';
import { openApk } from '../support/apk.js';
import { DNF_PACKAGES, dnfImage, serveRepository } from '../support/dnf.js';
import { serve } from '../support/http.js';
import { ociArchive } from '../support/oci.js';
import { openResolver } from '../support/resolver.js';
import { makeWorld, sharedData, type World } from '../support/world.js';

const test = suite('from-image and run');
let world: World;
let engine: Engine;
let image: string;

test.before(async () => {
  world = makeWorld();
  Object.assign(process.env, world.env);
  // What was learnt about KVM on this host.
  const known = join(sharedData(), 'forkd/host.json');
  if (existsSync(known)) cpSync(known, join(world.env.XDG_DATA_HOME, 'forkd/host.json'));
  engine = new Engine();
  const { initrd } = await buildDefaultImage({ cacheDir: join(world.env.FORKD_RUN_CACHE, 'images') });
  const config = {
    Env: ['A=1', 'PATH=/bin'],
    WorkingDir: '/srv',
    User: 'app',
    Entrypoint: ['echo', 'entry'],
    Cmd: ['cmd'],
  };
  image = join(world.root, 'app.tar');
  writeFileSync(image, await ociArchive(await busyboxImage(initrd, config)));
});

test.after(async () => {
  await engine?.close();
  world?.close();
});

const run = (args: string[]) =>
  runImage(engine, { image, cacheDir: join(world.root, 'rootfs'), args, timeoutSecs: 60 });
const refusal = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'done',
    (error: ForkdError) => `${error.code}: ${error.message}`,
  );

test('run: ENTRYPOINT and CMD, or a command, in a fresh VM; the second one does not boot', async () => {
  assert.equal(await run([]), { stdout: 'entry cmd\n', stderr: '', exit_code: 0 });
  const tag = runTag({ image });
  const made = statSync(join(world.snapshots, tag)).ino;
  const reply = await run(['sh', '-c', 'echo $A; pwd; id -u; touch mark; exit 3']);
  assert.equal([reply.stdout, reply.exit_code], ['1\n/srv\n1000\n', 3]);
  assert.is((await run(['test', '-e', 'mark'])).exit_code, 1, 'each run has a fresh VM');
  assert.is(statSync(join(world.snapshots, tag)).ino, made);
  assert.match((await run(['/nowhere'])).error ?? '', /^FileNotFoundError/);
});

test('run --volume: what is in it; a snapshot of its own, made again when the file has changed', async () => {
  const volume = join(world.root, 'data.ext4');
  const make = (text: string): void => {
    const tree = mkdtempSync(join(world.root, 'tree-'));
    writeFileSync(join(tree, 'file'), text);
    rmSync(volume, { force: true });
    execFileSync('/usr/sbin/mkfs.ext4', ['-q', '-F', '-d', tree, volume, '4M']);
  };
  const inVolume = async (script: string, mode: string) => {
    const args = ['--volume', `${volume}:/data:${mode}`, '--', 'sh', '-c', script];
    const { stdout, stderr, code } = await forkd(['run', '--image', image, '--cache', world.root, ...args], {
      env: world.env,
    });
    assert.is(code, 0, stderr);
    return stdout;
  };
  make('first\n');
  assert.is(await inVolume('cat /data/file; touch /data/x || echo fixed', 'ro'), 'first\nfixed\n');
  make('second\n');
  assert.is(await inVolume('cat /data/file', 'ro'), 'second\n');
  assert.is((await run(['test', '-e', '/data/file'])).exit_code, 1, 'a run without it has its own snapshot');
  const volumes = [{ host_path: volume, guest_path: '/data', read_only: true }];
  assert.not.equal(runTag({ image, volumes }), runTag({ image }));
  assert.not.equal(
    runTag({ image, volumes }),
    runTag({ image, volumes: volumes.map((v) => ({ ...v, read_only: false })) }),
  );
});

test('from-image: warmed by a program before it is saved; one that fails leaves nothing', async () => {
  const request = { image, cacheDir: join(world.root, 'rootfs'), tag: 'app' };
  const failing = refusal(snapshotImage(engine, { ...request, warmExec: ['sh', '-c', 'echo bad; exit 4'] }));
  assert.match(await failing, /^WARM_UP_FAILED: .*exit code 4.*bad/);
  assert.match(await refusal(snapshotImage(engine, { ...request, warmEval: '1' })), /^ARGUMENT_INVALID: .*Python/);
  assert.not(engine.store.exists('app'));
  const { rootfs } = await snapshotImage(engine, { ...request, warmExec: ['sh', '-c', 'echo $A > warm'] });
  assert.ok(rootfs.cached);
  const { sandboxes } = await engine.fork({ tag: 'app', n: 3 });
  for (const { id } of sandboxes) assert.is((await engine.exec(id, ['cat', 'warm'], 60)).stdout, '1\n');
  await engine.kill(sandboxes);
  assert.match(await refusal(snapshotImage(engine, request)), /^SNAPSHOT_EXISTS/);
});

test("extras: by the image's own package manager, as root, in a VM with network; what fails leaves nothing", async () => {
  const web = await serve(({ path }, response) => void response.end(`content of ${path}`));
  // As small as a package manager can be. The VM reaches this host's loopback only where a proxy is said to listen.
  process.env['http_proxy'] = web.url.replace(/\/$/, '');
  const apk = `#!/bin/sh
set -e
[ "$1 $2" = 'add --no-cache' ]
shift 2
for name; do wget -q -O /srv/$name http://packages.invalid/$name; chmod 600 /srv/$name; done
id -u > /srv/who
`;
  const { initrd } = await buildDefaultImage({ cacheDir: join(world.env.FORKD_RUN_CACHE, 'images') });
  const small = join(world.root, 'small.tar');
  writeFileSync(
    small,
    await ociArchive(
      await busyboxImage(initrd, { Env: ['PATH=/bin'], User: 'app' }, [{ name: 'sbin/apk', body: apk, mode: 0o755 }]),
    ),
  );
  const cacheDir = join(world.root, 'extras');
  const build = (extras: string[], file = small) =>
    buildRootfs(cacheDir, { image: file, extras }, withInstall(engine, {}));
  try {
    const { path, record, cached } = await build(['two', 'one', 'two']);
    const cat = (name: string) =>
      execFileSync('/usr/sbin/debugfs', ['-R', `cat ${name}`, path], {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
      });
    assert.equal([cached, record.extras], [false, ['one', 'two']]);
    assert.equal(
      [cat('/srv/one'), cat('/srv/two'), cat('/srv/who')],
      ['content of http://packages.invalid/one', 'content of http://packages.invalid/two', '0\n'],
    );
    assert.match(cat('/etc/forkd/image.conf'), /^uid 1000$/m);
    assert.ok(statSync(path).size < 64 * 2 ** 20, 'the room for packages is gone');
    execFileSync('/usr/sbin/e2fsck', ['-fn', path], { stdio: 'ignore' });
    assert.ok((await build(['one', 'two'])).cached);
    const asked = web.heard.length;
    assert.match(await refusal(build(['one'], image)), /^EXTRAS_FAILED: .*neither apt-get nor apk/);
    assert.is(web.heard.length, asked);
    assert.equal(readdirSync(cacheDir), [record.key]);
  } finally {
    delete process.env['http_proxy'];
    await web.close();
  }
});

/** In the place of a package manager: what it finds by name, and whom it can talk to. */
const LOOK = `#!/bin/sh
shift 2
exec >/srv/looked
for target; do
  name=\${target%=*}
  address=$(busybox nslookup $name | busybox sed -n 's/^Address: *\\([0-9.]*\\)$/\\1/p')
  said=$(busybox nc -w 5 \${address:-10.0.2.2} \${target#*=} </dev/null)
  echo "$name \${address:-nowhere} \${said:-no answer}"
done
`;

test('the VM of extras, in its jail: names by the resolver of this host, and of its loopback only a proxy', async () => {
  // Port 53, and a resolv.conf for one process tree.
  if (process.getuid?.() !== 0) return;
  const resolver = await openResolver({ 'proxy.example': ['10.0.2.2'] }, { host: '127.11.53.53', port: 53 });
  const [proxy, other] = await Promise.all([speaker('the proxy'), speaker('another')]);
  const disk = join(world.root, 'looked.ext4');
  const resolvConf = join(world.root, 'resolv.conf');
  writeFileSync(resolvConf, 'nameserver 127.11.53.53\n');
  const small = join(world.root, 'look.tar');
  const { initrd } = await buildDefaultImage({ cacheDir: join(world.env.FORKD_RUN_CACHE, 'images') });
  const items = [{ name: 'sbin/apk', body: LOOK, mode: 0o755 }];
  writeFileSync(small, await ociArchive(await busyboxImage(initrd, { Env: ['PATH=/bin'] }, items)));
  try {
    const targets = [`proxy.example=${proxy.port}`, `proxy.example=${other.port}`, `evil.example=${other.port}`];
    const build = ['parent', 'build', small, '-o', disk, ...targets.flatMap((target) => ['--extra', target])];
    const script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"';
    const args = ['--mount', 'sh', '-c', script, resolvConf, process.execPath, CLI, ...build];
    const env = { ...world.env, http_proxy: `http://127.0.0.1:${proxy.port}`, https_proxy: '' };
    const ended = await start('unshare', args, { env }).ended;
    assert.is(ended.code, 0, ended.stderr);
    const looked = execFileSync('/usr/sbin/debugfs', ['-R', 'cat /srv/looked', disk], { encoding: 'utf8' });
    assert.equal(looked.trim().split('\n').sort(), [
      'evil.example nowhere no answer',
      'proxy.example 10.0.2.2 no answer',
      'proxy.example 10.0.2.2 the proxy',
    ]);
    assert.ok(resolver.asked.includes('proxy.example') && resolver.asked.includes('evil.example'));
    assert.is(other.heard(), 0, 'nobody has come there');
  } finally {
    for (const one of [resolver, proxy, other]) one.close();
  }
});

/** A server on this host's loopback that says one thing. */
const speaker = async (text: string) => {
  let heard = 0;
  const server = createServer((client) => {
    heard++;
    client.on('error', () => undefined).end(text);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { port: (server.address() as AddressInfo).port, heard: () => heard, close: () => void server.close() };
};

/** A root of some hundred packages and two minutes. By hand: FORKD_TEST_DNF=1, or the tar of such a root from a time before. */
const dnf = process.env['FORKD_TEST_DNF'];

(dnf === undefined ? test.skip : test)('extras by a real dnf, from a repository of rpms', async () => {
  await installPackages(DNF_PACKAGES);
  const file = dnfImage(world.root, dnf ?? '');
  const web = await serveRepository(world.root);
  process.env['http_proxy'] = web.url;
  try {
    const cacheDir = join(world.root, 'dnf');
    const script = 'forkd-hello; rpm -q forkd-hello; . /etc/os-release; echo $ID';
    const request = { image: file, cacheDir, extras: ['forkd-hello'], args: ['sh', '-c', script], timeoutSecs: 120 };
    const reply = await runImage(engine, request);
    assert.is(reply.stdout, 'hello from an rpm\nforkd-hello-1.0-1.noarch\nfedora\n', reply.stderr);
    assert.ok(web.heard.some(({ path }) => path.endsWith('.rpm')));
    const missing = buildRootfs(cacheDir, { image: file, extras: ['forkd-nothing'] }, withInstall(engine, {}));
    assert.match(await refusal(missing), /^EXTRAS_FAILED: .*forkd-nothing/);
  } finally {
    delete process.env['http_proxy'];
    await web.close();
  }
});

/** Neither Debian nor npm has an apk: FORKD_TEST_APK is the path of one that was built from the source of apk-tools 3. */
const apkProgram = process.env['FORKD_TEST_APK'];

(apkProgram === undefined ? test.skip : test)('extras by a real apk, from a signed repository', async () => {
  const dir = join(world.root, 'apk');
  mkdirSync(dir);
  const { items, web } = await openApk(dir, apkProgram ?? '');
  process.env['http_proxy'] = web.url;
  try {
    const { initrd } = await buildDefaultImage({ cacheDir: join(world.env.FORKD_RUN_CACHE, 'images') });
    const file = join(dir, 'apk.tar');
    writeFileSync(file, await ociArchive(await busyboxImage(initrd, { Env: ['PATH=/usr/bin:/bin:/sbin'] }, items)));
    const cacheDir = join(dir, 'cache');
    const script = 'forkd-hello; apk info';
    const request = { image: file, cacheDir, extras: ['forkd-hello'], args: ['sh', '-c', script], timeoutSecs: 120 };
    const reply = await runImage(engine, request);
    assert.is(reply.stdout, 'hello from an apk\nforkd-hello\nforkd-word\n', reply.stderr);
    const missing = buildRootfs(cacheDir, { image: file, extras: ['forkd-nothing'] }, withInstall(engine, {}));
    assert.match(await refusal(missing), /^EXTRAS_FAILED: .*forkd-nothing \(no such package\)/);
  } finally {
    delete process.env['http_proxy'];
    await web.close();
  }
});

test('the command line: exit code and output of the guest', async () => {
  const env = world.env;
  const ended = await forkd(['run', '--image', image, '--cache', world.root, '--', 'sh', '-c', 'echo out; exit 9'], {
    env,
  });
  assert.equal([ended.stdout, ended.code], ['out\n', 9], ended.stderr);
  const bad = await forkd(['run', '--image', image, '--extra', 'x;y', '--', 'x'], { env });
  assert.equal([bad.code === 0, /not the name of a package/.test(bad.stderr)], [false, true], bad.stderr);
  assert.is((await forkd(['run', '--image', join(world.root, 'none.tar'), '--', 'x'], { env })).code, 1);
});

test.run();
