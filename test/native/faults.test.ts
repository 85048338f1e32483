/** The fault server: each scenario runs in a process of its own, against processes that fault. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { parseRegions } from '../../src/workers/vmm/handshake.js';
import { native } from '../../src/native/binding.js';
import { compileFaulter } from './faults.js';
import { inChild } from './in-child.js';

/** The scenarios of scenario/faults.ts, and what each shows. */
const SCENARIOS = {
  threads: 'eight threads that touch a whole image find it right, and each chunk was read once',
  twoThreads: 'two threads serve one process',
  twoServers: 'two servers fill one image, from a layer and from a file',
  layer: 'a layer is served, and writes go to private pages',
  fork: 'forks are followed for three generations',
  leaks: 'what ended is let go',
  selfSweep: 'what ended is let go without being asked',
  remove: 'dropped pages of the memfd come back as the image',
  move: 'mappings may move and go',
  copy: 'anonymous memory gets copies, in forks too',
  copyRemove: 'dropped pages of anonymous memory come back as zeros',
  copyMove: 'anonymous memory may move',
  killed: 'a process that is killed while it waits disturbs no other',
  killedAnytime: 'nor does one that is killed at any other moment',
  vanished: 'a chunk whose filler has vanished is filled by another',
  damaged: 'a damaged chunk ends the process that touches it, with the reason, and no other',
  damagedForAnother: 'who reads the memory of another process is not ended for it',
  withoutThreadId: 'without thread ids the process is known by its pidfd',
  features: 'a userfaultfd that lacks a feature is refused, by the name of the feature',
  handshakes: 'a bad handshake is refused and leaves no descriptor',
  ahead: 'chunks can be filled ahead of faults',
  pollution: 'pages that a stranger made in the memfd are mended',
  closing: 'a server is not closed under a process that needs it',
};

const test = suite<{ folder: string; faulter: string }>('native faults');

test.before((context) => {
  context.folder = mkdtempSync(join(tmpdir(), 'forkd-faults-'));
  context.faulter = compileFaulter(context.folder);
});
test.after(({ folder }) => rmSync(folder, { recursive: true, force: true }));

for (const [name, title] of Object.entries(SCENARIOS)) {
  test(title, async ({ faulter }) => {
    assert.is(await inChild('faults', 60_000, [faulter, name]), null);
  });
}

test('the features of userfaultfd(2) have names', () => {
  const features = native.uffdFeatures();
  for (const name of ['event_fork', 'missing_shmem', 'thread_id']) assert.ok(features.includes(name), name);
});

test('memories: only of memfds with whole small pages, and handles are not used twice', () => {
  const memfd = native.memfdCreate('image');
  assert.throws(() => native.memoryOpen(memfd), /EINVAL/); // empty
  native.fdResize(memfd, 4097);
  assert.throws(() => native.memoryOpen(memfd), /EINVAL/);
  native.fdResize(memfd, 8192);
  const memory = native.memoryOpen(memfd);
  assert.ok(native.memoryClose(memory));
  assert.not(native.memoryClose(memory));
  assert.is.not(native.memoryOpen(memfd), memory);
  native.memfdSeal(memfd, ['future_write']);
  assert.throws(() => native.memoryOpen(memfd), /EPERM.*mmap/);
  native.fdClose(memfd);
});

test('servers: the image must fit the memory, and the page map the image', () => {
  const image = native.memfdCreate('image');
  native.fdResize(image, 3 * CHUNK_BYTES);
  const memfd = native.memfdCreate('memory');
  native.fdResize(memfd, 2 * CHUNK_BYTES);
  const memory = native.memoryOpen(memfd);
  assert.throws(() => native.faultOpen({ memory, sourceFd: image, patienceUs: 0 }), /size of the image/);
  assert.throws(() => native.faultOpen({ source: 999_999, patienceUs: 0 }), /source: expected/);
  const server = native.faultOpen({ sourceFd: image, patienceUs: 0 });
  const short = new Int32Array(2);
  const stats = new BigInt64Array(0);
  assert.throws(() => native.faultServe(server, short, stats, new Uint32Array(0)), /states: expected/);
  assert.throws(() => native.faultFill(server, new Int32Array(3), stats, Uint32Array.of(1)), /memory/);
  native.faultStop(server);
  native.faultServe(server, new Int32Array(3), stats, new Uint32Array(0)); // returns at once
  native.faultClose(server, new Int32Array(3));
  native.memoryClose(memory);
  for (const fd of [image, memfd]) native.fdClose(fd);
});

const REGION = { base_host_virt_addr: 0x7f00_0000_0000, size: 8192, offset: 4096, page_size_kib: 4096 };
const IMAGE_BYTES = 1 << 20;

test('handshakes: as Firecracker sends them', () => {
  assert.equal(parseRegions(JSON.stringify([REGION]), IMAGE_BYTES), [
    { base: 0x7f00_0000_0000, bytes: 8192, offset: 4096 },
  ]);
  assert.is(parseRegions(JSON.stringify([{ ...REGION, page_size: 4096 }]), IMAGE_BYTES).length, 1);
});

const MALFORMED: [text: string, reason: RegExp][] = [
  ['', /not JSON/],
  ['[', /not JSON/],
  ['null', /not an array/],
  ['{}', /not an array/],
  ['[]', /0 regions/],
  [JSON.stringify(Array.from({ length: 65 }, () => REGION)), /65 regions/],
  ['[null]', /region 0: base_host_virt_addr is not a whole number/],
  ['[[]]', /region 0: base_host_virt_addr/],
  [JSON.stringify([{ ...REGION, size: -4096 }]), /size is not a whole number/],
  [JSON.stringify([{ ...REGION, size: '8192' }]), /size is not a whole number/],
  [JSON.stringify([{ ...REGION, base_host_virt_addr: 2 ** 60 }]), /not a whole number/],
  [JSON.stringify([{ ...REGION, size: 0 }]), /it is empty/],
  [JSON.stringify([{ ...REGION, offset: 1 }]), /offset is not a multiple/],
  [JSON.stringify([{ ...REGION, offset: IMAGE_BYTES }]), /past the end/],
  [JSON.stringify([{ ...REGION, page_size_kib: 4 }]), /page_size_kib is not a multiple/],
  [JSON.stringify([{ ...REGION, page_size_kib: 2 << 20 }]), /pages of 2097152 bytes/],
  [JSON.stringify([REGION, { ...REGION, offset: 0 }]), /overlap/],
];

for (const [text, reason] of MALFORMED) {
  test(`handshakes: ${reason}`, () => assert.throws(() => parseRegions(text, IMAGE_BYTES), reason));
}

test.run();
