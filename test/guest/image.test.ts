/** The image builder's parts that need no network and no VM. */
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { execFileSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { parseSimulation } from '../../src/main/image/apt.js';
import { makeStaging, publish } from '../../src/main/image/cache.js';
import { writeCpio } from '../../src/main/image/cpio.js';
import { mergedPath } from '../../src/main/image/deb.js';
import { buildDefaultImage, buildInitrd, findImage } from '../../src/main/image/index.js';
import { dependenciesOf } from '../../src/main/image/modules.js';
import { belongsInGuest, isDropped, isKernelPackage } from '../../src/main/image/packages.js';
import type { ImageRecord } from '../../src/main/image/types.js';

const test = suite('guest image');
const cacheDir = join(process.env.FORKD_RUN_CACHE ?? '/var/cache/forkd', 'images');
let dir: string;

test.before.each(() => {
  dir = mkdtempSync(join(tmpdir(), 'forkd-image-test-'));
});

test.after.each(() => rmSync(dir, { recursive: true, force: true }));

/** The guest's own static busybox, taken out of its root file system: a bare host has none. */
const guestBusybox = async (): Promise<string> => {
  const { rootfs } = await buildDefaultImage({ cacheDir });
  const path = join(dir, 'busybox');
  execFileSync('debugfs', ['-R', `dump /usr/bin/busybox ${path}`, rootfs], { stdio: 'ignore' });
  chmodSync(path, 0o755);
  return path;
};

test('a simulation of apt-get gives names and versions', () => {
  const text =
    'NOTE\nInst gcc-12-base (12.2.0-14 Debian:12.1/stable [amd64])\nInst libc6:i386 (2.36 x)\nInst a [1.0] (2.0 y)\nConf a (2.0 y)\n';
  assert.equal(parseSimulation(text), [
    { name: 'gcc-12-base', version: '12.2.0-14' },
    { name: 'libc6', version: '2.36' },
    { name: 'a', version: '2.0' },
  ]);
});

test('paths of packages become those of a merged /usr', () => {
  assert.is(mergedPath('./bin/ls'), 'usr/bin/ls');
  assert.is(mergedPath('/lib64/ld.so'), 'usr/lib64/ld.so');
  assert.is(mergedPath('usr/lib/x'), 'usr/lib/x');
  assert.is(mergedPath('libexec/x'), 'libexec/x');
});

test('what goes into the guest', () => {
  assert.ok(isKernelPackage('linux-image-6.1.0-56-cloud-amd64') && !isKernelPackage('linux-base'));
  assert.ok(belongsInGuest('libc6') && !belongsInGuest('perl-base') && !belongsInGuest('dpkg'));
  assert.ok(isDropped('usr/share/doc/x/copyright') && isDropped('usr/lib/python3/dist-packages/numpy/core/tests/a.py'));
  assert.not.ok(isDropped('usr/lib/python3.11/unittest/mock.py'));
});

test('module dependencies are read from the module', () => {
  assert.equal(dependenciesOf(Buffer.from('x\0depends=virtio_ring,virtio\0name=a\0')), ['virtio_ring', 'virtio']);
  assert.equal(dependenciesOf(Buffer.from('x\0depends=\0name=a\0')), []);
  assert.equal(dependenciesOf(Buffer.from('no module')), []);
});

test('the initramfs is an archive that cpio readers accept', async () => {
  const archive = writeCpio([
    { path: 'd', kind: 'directory' },
    { path: 'd/file', kind: 'file', data: Buffer.from('hello'), mode: 0o755 },
    { path: 'd/link', kind: 'link', target: 'file' },
  ]);
  const listing = execFileSync(await guestBusybox(), ['cpio', '-t', '-v'], {
    input: archive,
    stdio: ['pipe', 'pipe', 'ignore'],
  }).toString();
  assert.match(listing, /^drwxr-xr-x .* d$/m);
  assert.match(listing, /^-rwxr-xr-x .* 5 .* d\/file$/m);
  assert.match(listing, /^lrwxrwxrwx .* d\/link -> file$/m);
});

test('an initramfs for a kernel without modules', async () => {
  const out = join(dir, 'initrd.img');
  await buildInitrd({ out, busybox: await guestBusybox() });
  assert.equal(readdirSync(dir).sort(), ['busybox', 'initrd.img']);
  const text = readFileSync(out, 'latin1');
  assert.ok(text.includes('forkd_agent/serve.py') && text.includes('modules/list') && !text.includes('modules/virtio'));
});

test('an existing image is found, and not built again', async () => {
  const steps: string[] = [];
  const built = await buildDefaultImage({ cacheDir, onProgress: (step) => void steps.push(step) });
  assert.equal([findImage(cacheDir)?.dir, steps], [built.dir, []]);
});

const record = (digest: string): ImageRecord => ({
  format: 1,
  digest,
  sourceDigest: 'source',
  builtAt: '',
  agentGeneration: 1,
  kernelVersion: '',
  pythonVersion: '',
  rootfsType: 'ext4',
  files: {
    kernel: { name: 'k', bytes: 1, sha256: '' },
    initrd: { name: 'k', bytes: 1, sha256: '' },
    rootfs: { name: 'k', bytes: 1, sha256: '' },
  },
  packages: {},
});

const stage = async (text: string): Promise<string> => {
  const staging = await makeStaging(dir);
  writeFileSync(join(staging, 'k'), text);
  writeFileSync(join(staging, 'image.json'), JSON.stringify(record('abc')));
  return staging;
};

test('two builders of one image both end with the first one, and a damaged image is replaced', async () => {
  const [first, second] = [await stage('1'), await stage('2')];
  assert.is((await publish(first, dir, record('abc'))).dir, join(dir, 'abc'));
  assert.is((await publish(second, dir, record('abc'))).dir, join(dir, 'abc'));
  assert.is(readFileSync(join(dir, 'abc/k'), 'utf8'), '1');
  writeFileSync(join(dir, 'abc/k'), 'longer');
  await publish(await stage('3'), dir, record('abc'));
  assert.is(readFileSync(join(dir, 'abc/k'), 'utf8'), '3');
});

test('a cancelled build leaves no image', async () => {
  try {
    await buildDefaultImage({ cacheDir: dir, signal: AbortSignal.abort() });
    assert.unreachable();
  } catch (error) {
    assert.is((error as { code: string }).code, 'CANCELLED');
  }
  assert.equal(readdirSync(dir), []);
});

test.run();
