/**
 * Packs of versions 1 and 2: as system tools read and write them, there and back, and samples made to harm. Each hostile one must leave the store as it was,
 * and nothing outside it.
 */
import { execFileSync, spawn } from 'node:child_process';
import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import {
  copyFileSync,
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { parse, stringify } from 'smol-toml';
import * as assert from 'uvu/assert';
import { compress, DecompressStream, decompress } from 'zstd-napi';
import { ForkdError } from '../../src/contract/errors.js';
import type { FileDigest } from '../../src/contract/snapshot.js';
import { MiB } from '../../src/contract/units.js';
import { pack } from '../../src/main/hub/pack.js';
import type { PlainManifest } from '../../src/main/hub/plain/manifest.js';
import { decodePlainHeader, placesOf } from '../../src/main/hub/plain/tar.js';
import { TarReader } from '../../src/main/hub/tar-reader.js';
import { header } from '../../src/main/hub/tar-writer.js';
import { takeDisk, unpack, type UnpackRequest } from '../../src/main/hub/unpack.js';
import { Store } from '../../src/main/store/store.js';
import { unzstd } from '../../src/main/zstd.js';
import { native } from '../../src/native/binding.js';
import { forkd } from '../support/cli.js';
import { IMAGE_MIB, PAGE, putBase, putDiff, readPages, Subject } from '../support/layers.js';
import { settled, type Sample, sampleOf, sampleTo } from '../support/plain-packs.js';
import { suite } from '../support/suite.js';

const root = mkdtempSync(join(tmpdir(), 'plain-'));
const store = new Store(join(root, 'from'));
const target = new Store(join(root, 'to'));
const [one, two] = [join(root, 'one', 'one.tar.zst'), join(root, 'two', 'two.tar.zst')];
/** Of version 1, thinned. */
let small: Sample;

const disk = (name: string, content: Buffer): FileDigest => {
  const path = join(root, name);
  writeFileSync(path, content);
  return { path, blake3: native.blake3(content), bytes: content.length, mtime_ms: statSync(path).mtimeMs };
};
const sha256 = (content: Buffer): string => createHash('sha256').update(content).digest('hex');
const rootfs = Buffer.concat([Buffer.alloc(MiB), Buffer.from('disk'), Buffer.alloc(MiB)]);
const sidecar = `${sha256(rootfs).slice(0, 16)}.rootfs.zst`;

/** A folder as GNU tar packs it, with the holes that its files have. */
const packed = (folder: string, names: string[]): Buffer =>
  execFileSync('tar', ['-c', '-S', '--format=gnu', '-C', folder, ...names], { maxBuffer: 64 * MiB });

/** The same pack, its memory with holes in place of zeros: a few KiB. */
const thinned = async (path: string): Promise<Sample> => {
  const folder = join(root, 'thinned');
  const names = await extract(path, folder);
  for (const name of names.filter((one) => one.endsWith('memory.bin')))
    execFileSync('fallocate', ['--dig-holes', join(folder, name)]);
  const sample = sampleOf(packed(folder, names));
  rmSync(folder, { recursive: true });
  return sample;
};

/** As any tar extracts it; returns the names of the entries. */
const extract = async (path: string, into: string): Promise<string[]> => {
  mkdirSync(into, { recursive: true });
  const tar = spawn('tar', ['-x', '-v', '-C', into], { stdio: ['pipe', 'pipe', 'inherit'] });
  const [names] = await Promise.all([
    text(tar.stdout),
    pipeline(createReadStream(path), new DecompressStream(), tar.stdin),
  ]);
  return names.trim().split('\n');
};

const code = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'accepted',
    (error: unknown) => (error instanceof ForkdError ? error.code : String(error)),
  );

/** The code that a sample beside the sidecar is refused with, or `accepted`; nothing may be there afterwards. */
const refusal = async (sample: Sample, more: Partial<UnpackRequest> = {}): Promise<string> => {
  const path = join(root, 'one', 'bad.tar.zst');
  writeFileSync(path, sampleTo(sample));
  const before = readdirSync(root).sort();
  const said = await code(unpack(target, { path, ...more }));
  for (const tag of target.tags().reverse()) target.remove(tag);
  const left = existsSync(target.root)
    ? readdirSync(target.root).filter((name) => !/^\.(locks|halves)$/.test(name))
    : [];
  assert.equal([left, readdirSync(root).sort()], [[], before]);
  return said;
};

const edited = (edit: (sample: Sample) => void, more: Partial<UnpackRequest> = {}): Promise<string> => {
  const sample = small.map(({ header, body }) => ({ header: Buffer.from(header), body: Buffer.from(body) }));
  edit(sample);
  return refusal(sample, more);
};

const nameOf = ({ header }: Sample[number]): string => header.toString('latin1', 0, 100).replace(/\0.*$/, '');
const entryOf = (sample: Sample, name: string): Sample[number] => {
  const found = sample.find((entry) => nameOf(entry) === name);
  assert.ok(found, name);
  return found;
};

/** The manifest says something else; of a file that is changed with it, the right hash and size. */
const saying = (edit: (manifest: PlainManifest, sample: Sample) => void, more: Partial<UnpackRequest> = {}) =>
  edited((sample) => {
    const entry = sample[0] as Sample[number];
    const manifest = parse(entry.body.toString()) as unknown as PlainManifest;
    edit(manifest, sample);
    entry.body = Buffer.from(stringify(manifest));
    settled(entry);
  }, more);

const set = (object: unknown, values: object): void => void Object.assign(object as object, values);

const plain = suite('packs of versions 1 and 2');

plain.before(async () => {
  for (const path of ['one', 'two']) mkdirSync(join(root, path));
  const digest = disk('r', rootfs);
  // Noise: an image of zeros in a pack of nothing else is a bomb.
  const disks = { kernel: disk('k', randomBytes(200_000)), initrd: disk('i', Buffer.from('initrd')) };
  const change = { volumes: [], volume_digests: [], ...disks, rootfs: digest.path, rootfs_digest: digest };
  putBase(store, 'base', { 0: 1, 20: 2, 21: 3, 30000: 4 }, change);
  const subject = await Subject.start();
  // Page 20 is zero in the child and hides its parent's; 21 is written with what it had.
  await subject.write({ 3: 7, 20: 0, 21: 3 });
  putDiff(store, 'child', 'base', subject);
  await subject.end();
  await pack(store, { tag: 'base', out: one, version: 1, description: 'a "test"', baseImage: 'debian' });
  await pack(store, { tag: 'child', out: two, version: 2 });

  small = await thinned(one);
  assert.ok(entryOf(small, 'memory.bin').body.length < MiB, 'it has holes');
});
plain.after(() => rmSync(root, { recursive: true, force: true }));

plain('version 1: what other tools find in it is what its manifest says', async () => {
  const folder = join(root, 'found');
  await extract(one, folder);
  const manifest = parse(readFileSync(join(folder, 'manifest.toml'), 'utf8')) as unknown as PlainManifest;
  const { forkd_pack_version, tag, description, base_image, files, chain, created_at } = manifest;
  assert.equal([forkd_pack_version, tag, description, base_image, chain], [1, 'base', 'a "test"', 'debian', undefined]);
  assert.match(created_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
  assert.equal(
    files.map(({ path }) => path),
    ['snapshot.json', 'vmstate', 'kernel', 'initrd', 'memory.bin'],
  );
  for (const { path, size, sha256: said } of files) {
    const content = readFileSync(join(folder, path));
    assert.equal([content.length, sha256(content)], [size, said], path);
  }
  const image = readFileSync(join(folder, 'memory.bin'));
  assert.is(image.length, IMAGE_MIB * MiB);
  assert.equal(
    [0, 20, 21, 30_000, 1].map((page) => image[page * PAGE + 5]),
    [1, 2, 3, 4, 0],
  );
  assert.equal({ ...manifest.rootfs }, { target_path: join(root, 'r'), sha256: sha256(rootfs), size: rootfs.length });
  assert.ok(Buffer.from(decompress(readFileSync(join(root, 'one', sidecar)))).equals(rootfs));
  const said = JSON.parse(readFileSync(join(folder, 'snapshot.json'), 'utf8')) as Record<string, string>;
  assert.equal(
    [said['vmstate'], said['memory']].map((path) => basename(path ?? '')),
    ['vmstate', 'memory.bin'],
  );
  rmSync(folder, { recursive: true });
});

plain('version 2: a chain, each link with its whole image and the hash of its parent', async () => {
  const folder = join(root, 'found');
  await extract(two, folder);
  const {
    files,
    chain = [],
    ...rest
  } = parse(readFileSync(join(folder, 'manifest.toml'), 'utf8')) as unknown as PlainManifest;
  assert.equal([rest.forkd_pack_version, rest.tag, rest.parent_tag, files], [2, 'child', 'base', []]);
  assert.equal(
    chain.map(({ tag, parent_tag }) => [tag, parent_tag]),
    [
      ['base', undefined],
      ['child', 'base'],
    ],
  );
  for (const { tag, files: list } of chain)
    for (const { path, sha256: said } of list) assert.is(sha256(readFileSync(join(folder, tag, path))), said, path);
  const parent = sha256(readFileSync(join(folder, 'base/memory.bin')));
  const said = JSON.parse(readFileSync(join(folder, 'child/snapshot.json'), 'utf8')) as Record<string, unknown>;
  assert.equal([chain[1]?.parent_content_hash, said['parent_content_hash']], [parent, parent]);
  const image = readFileSync(join(folder, 'child/memory.bin'));
  assert.equal(
    [0, 3, 20, 21].map((page) => image[page * PAGE]),
    [1, 7, 0, 3],
  );
  rmSync(folder, { recursive: true });
});

plain('there and back: images are the same, and of a link only what differs is stored', async () => {
  const back = await unpack(target, { path: two });
  assert.equal([back.tag, back.made], ['child', ['base', 'child']]);
  for (const tag of ['base', 'child']) assert.equal(readPages(target, tag), readPages(store, tag), tag);
  const { parent_tag, parent_content_hash, rootfs: path } = target.manifest('child');
  assert.equal([parent_tag, parent_content_hash], ['base', target.manifest('base').memory_root]);
  assert.ok(readFileSync(path).equals(rootfs));
  const chain = target.hold('child');
  const layer = native.layerOpen(chain.layers[1]?.fd as number);
  chain.close();
  // Page 3; and page 20, which is zero. What was written with what it had is the parent's.
  assert.equal([layer.dataPages, layer.zeroPages], [1, 1]);
  assert.is(await code(unpack(target, { path: two })), 'SNAPSHOT_EXISTS');
  const renamed = await unpack(target, { path: two, tag: 'again' });
  assert.equal(renamed.made, ['again'], 'its ancestor is here');
  assert.equal(readPages(target, 'again'), readPages(store, 'child'));
  assert.is(await code(unpack(target, { path: two, tag: 'base' })), 'PACK_INVALID');
  const first = await unpack(new Store(join(root, 'first')), { path: one, tag: 'mine' });
  assert.equal(first.made, ['mine']);
  assert.equal(readPages(new Store(join(root, 'first')), 'mine'), readPages(store, 'base'));
  for (const tag of ['again', 'child', 'base']) target.remove(tag);
  rmSync(join(root, 'first'), { recursive: true });
});

plain('files with holes: where something made holes of zeros, they are zeros', async () => {
  assert.is(await refusal(small), 'accepted');
  const path = join(root, 'two', 'holes.tar.zst');
  writeFileSync(path, sampleTo(await thinned(two)));
  await unpack(target, { path });
  for (const tag of ['base', 'child']) assert.equal(readPages(target, tag), readPages(store, tag), tag);
  for (const tag of ['child', 'base']) target.remove(tag);
});

plain('hostile entries are refused', async () => {
  const instead = (change: (entry: Sample[number]) => void) =>
    edited((sample) => {
      const entry = entryOf(sample, 'kernel');
      change(entry);
      settled(entry);
    });
  const named = (name: string) =>
    instead(({ header }) => {
      header.fill(0, 0, 100);
      header.write(name, 0);
    });
  assert.is(await instead(() => undefined), 'accepted');
  for (const name of ['../escaped', join(root, 'escaped'), 'vmstate', 'more', './kernel', 'manifest.toml'])
    assert.is(await named(name), 'PACK_INVALID', name);
  // Links, a device, a directory, a pipe, extended headers, a long name.
  for (const type of '12345xgLK')
    assert.is(await instead(({ header }) => void header.write(type, 156)), 'PACK_INVALID', `type ${type}`);
  assert.is(await edited((sample) => void sample.push(entryOf(sample, 'kernel'))), 'PACK_INVALID', 'twice');
  assert.is(await edited((sample) => void sample.pop()), 'PACK_INVALID', 'missing');
  assert.is(await edited((sample) => void sample.shift()), 'PACK_INVALID', 'no manifest');
  // Its header goes on in further blocks where none are; and runs that lie.
  const sparse = (change: (header: Buffer) => void) =>
    edited((sample) => {
      const entry = entryOf(sample, 'memory.bin');
      change(entry.header);
      settled(entry, false);
    });
  assert.is(await sparse((header) => void header.write('1', 482)), 'PACK_INVALID', 'goes on');
  assert.is(await sparse((header) => void header.write('00000000001', 483)), 'PACK_INVALID', 'shorter than its runs');
  assert.is(await sparse((header) => void header.write('77777777777', 386)), 'PACK_INVALID', 'a run outside');
  assert.is(await sparse((header) => void header.write('77777777777', 398)), 'PACK_INVALID', 'a run too long');
  assert.is(await sparse((header) => void header.write('x', 398)), 'PACK_INVALID', 'no number');
  const endless = async function* () {
    for (const block = Buffer.alloc(512, 0, 'latin1').fill(1, 504, 505); ; ) yield block;
  };
  const places = placesOf(new TarReader(endless(), decodePlainHeader), {
    name: 'memory.bin',
    size: 0,
    sparse: { size: MiB, runs: [], goesOn: true },
  });
  assert.match(await code(places), /too many holes/);
});

plain('what unpacks to much from little can be interrupted', async () => {
  const zeros = compress(Buffer.alloc(256 * MiB));
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  for await (const _ of unzstd(Readable.from([zeros])));
  clearInterval(timer);
  assert.ok(turns > 1, `${turns} turns`);
  const abort = new AbortController();
  const out = join(root, 'half', 'pack');
  mkdirSync(join(root, 'half'));
  const onProgress = (done: number): void => void (done > rootfs.length + 64 * MiB && abort.abort());
  const packing = pack(store, { tag: 'base', out, version: 1 }, { signal: abort.signal, onProgress });
  assert.is(await code(packing), 'CANCELLED');
  assert.equal(readdirSync(join(root, 'half')), [], 'nor a root disk without a pack');
});

plain('every file is held to its hash and size', async () => {
  for (const name of ['snapshot.json', 'vmstate', 'kernel', 'initrd', 'memory.bin']) {
    const flip = (sample: Sample): void => {
      const { body } = entryOf(sample, name);
      body[body.length >> 1] = (body[body.length >> 1] as number) ^ 1;
    };
    assert.is(await edited(flip), 'PACK_INVALID', `${name} flipped`);
    if (name === 'memory.bin') continue;
    const longer = (sample: Sample): void => {
      const entry = entryOf(sample, name);
      entry.body = Buffer.concat([entry.body, Buffer.from('x')]);
      settled(entry);
    };
    assert.is(await edited(longer), 'PACK_INVALID', `${name} longer`);
  }
});

plain('a manifest that points elsewhere, lies, or is too large', async () => {
  const escaped = join(root, 'escaped');
  assert.is(await saying(() => undefined), 'accepted');
  const refusedOne = async (why: string, edit: (m: PlainManifest, sample: Sample) => void): Promise<void> => {
    assert.is(await saying(edit), 'PACK_INVALID', why);
  };
  for (const tag of ['../escaped', escaped, '', '.hidden', 'x'.repeat(65)])
    await refusedOne(`tag ${tag}`, (m) => set(m, { tag }));
  await refusedOne('no files', (m) => set(m, { files: [] }));
  await refusedOne('undeclared', (m) => void m.files.splice(2, 1));
  await refusedOne('twice', (m) => void m.files.push(m.files[2] as never));
  await refusedOne('path', (m) => set(m.files[2], { path: '../escaped' }));
  await refusedOne('hash', (m) => set(m.files[2], { sha256: 'x' }));
  await refusedOne('a bomb', (m) => set(m.files[4], { size: 9e11 }));
  await refusedOne('more than the pack can hold', (m) => set(m.files[4], { size: 1e9 }));
  await refusedOne('negative', (m) => set(m.files[4], { size: -1 }));
  await refusedOne('no image', (m) => set(m.files[4], { size: 4097 }));
  for (const size of [4097, MiB + 4096])
    await refusedOne(`an image of ${size} bytes`, (m, sample) => {
      const body = randomBytes(size);
      set(m.files[4], { size, sha256: sha256(body) });
      set(entryOf(sample, 'memory.bin'), { header: header('memory.bin', size), body });
    });
  await refusedOne('a chain in version 1', (m) => set(m, { chain: [{ tag: 'base', files: m.files }] }));
  await refusedOne('no chain in version 2', (m) => set(m, { forkd_pack_version: 2 }));
  await refusedOne(
    'a chain of what is not',
    (m) => void Object.assign(m, { forkd_pack_version: 2, files: [], chain: [5] }),
  );
  await refusedOne('a root disk of no size', (m) => set(m.rootfs, { size: 0 }));
  await refusedOne('another root disk', (m) =>
    set(m.rootfs, { sha256: sha256(rootfs).slice(0, 16) + 'ab'.repeat(24) }),
  );
  await refusedOne('a longer root disk', (m) => set(m.rootfs, { size: rootfs.length + 1 }));
  await refusedOne('a shorter root disk', (m) => set(m.rootfs, { size: rootfs.length - 1 }));
  // Where its maker had the disk is of no interest.
  assert.is(await saying((m) => set(m.rootfs, { target_path: escaped })), 'accepted');
  assert.not(existsSync(escaped));
  const text = (body: string) =>
    edited((sample) => {
      (sample[0] as Sample[number]).body = Buffer.from(body);
      settled(sample[0] as Sample[number]);
    });
  const version = 'forkd_pack_version = 1\n';
  assert.is(await text(`${version}a = ${'['.repeat(100_000)}`), 'PACK_INVALID', 'deep');
  assert.is(await text(`${version}# ${'x'.repeat(2 * MiB)}`), 'PACK_INVALID', 'huge');
  assert.is(await text(`${version}tag = "\0"`), 'PACK_INVALID', 'no text');
  assert.is(await text('forkd_pack_version = 9\n'), 'PACK_INVALID', 'neither this nor the form of version 3');
});

plain('a snapshot.json that could make QEMU do more, or is of something else', async () => {
  const described = (change: Record<string, unknown>) =>
    saying((manifest, sample) => {
      const entry = entryOf(sample, 'snapshot.json');
      const said = JSON.parse(entry.body.toString()) as { vmm: object };
      const vmm = { ...said.vmm, ...((change['vmm'] as object) ?? {}) };
      entry.body = Buffer.from(JSON.stringify({ ...said, ...change, vmm }));
      settled(entry);
      Object.assign(manifest.files[0] as object, { size: entry.body.length, sha256: sha256(entry.body) });
    });
  assert.is(await described({}), 'accepted');
  assert.is(await described({ vmm: { cpu_model: 'max -device x' } }), 'PACK_INVALID');
  assert.is(await described({ vmm: { machine: 'microvm,accel=x y' } }), 'PACK_INVALID');
  assert.is(await described({ tap: '../../x' }), 'PACK_INVALID');
  const volume = { host_path: '/etc/shadow', guest_path: '/v', read_only: true };
  const digest = { path: '/etc/shadow', blake3: '0'.repeat(64), bytes: 1, mtime_ms: 1 };
  assert.is(await described({ volumes: [volume], volume_digests: [digest] }), 'PACK_INVALID', 'volumes');
  assert.is(await described({ tag: 'other' }), 'PACK_INVALID', 'of another tag');
  assert.is(await described({ parent_tag: 'x', parent_content_hash: '0'.repeat(64) }), 'PACK_INVALID', 'no base');
  assert.is(await described({ memory_bytes: 256 * MiB, memory_mib: 256 }), 'PACK_INVALID', 'of another size');
  assert.is(await described({ vmstate_bytes: 5 }), 'PACK_INVALID', 'device state of another size');
  assert.is(await described({ kernel: digest }), 'PACK_INVALID', 'a kernel that is not in it');
  // Where its files were is of no interest.
  assert.is(await described({ memory: '/etc/shadow', vmstate: '/etc/shadow', rootfs: '/etc/shadow' }), 'accepted');
  assert.is(await described({ vmm: { name: 'firecracker' } }), 'PACK_OTHER_ENGINE');
});

plain('chains that do not fit together are refused', async () => {
  const path = join(root, 'two', 'chained.tar.zst');
  const sample = await thinned(two);
  const chained = async (
    edit: (manifest: PlainManifest) => void,
    order = (list: Sample): Sample => list,
  ): Promise<string> => {
    const [first, ...rest] = sample as [Sample[number], ...Sample];
    const manifest = parse(first.body.toString()) as unknown as PlainManifest;
    edit(manifest);
    const entry = { header: Buffer.from(first.header), body: Buffer.from(stringify(manifest)) };
    settled(entry);
    writeFileSync(path, sampleTo([entry, ...order(rest)]));
    const said = await code(unpack(target, { path }));
    for (const tag of ['child', 'base']) if (target.exists(tag)) target.remove(tag);
    return said;
  };
  const [base, child] = [0, 1].map((i) => (m: PlainManifest) => m.chain?.[i] as { tag: string; parent_tag?: string });
  assert.ok(base && child);
  for (const [why, edit] of Object.entries<(m: PlainManifest) => void>({
    'the child first': (m) => void m.chain?.reverse(),
    'of another parent': (m) => set(child(m), { parent_tag: 'other' }),
    'a difference to another memory': (m) => void Object.assign(child(m), { parent_content_hash: 'ab'.repeat(32) }),
    'a base that is none': (m) =>
      void Object.assign(base(m), { parent_tag: 'x', parent_content_hash: 'ab'.repeat(32) }),
    'twice one tag': (m) => set(base(m), { tag: 'child' }),
    'a tag that leads out': (m) => set(base(m), { tag: '../x' }),
  }))
    assert.is(await chained(edit), 'PACK_INVALID', why);
  const reversed = (list: Sample): Sample => [...list].sort((a, b) => nameOf(b).localeCompare(nameOf(a)));
  assert.is(await chained(() => undefined, reversed), 'PACK_INVALID', "a child's memory before its parent's");
});

plain('a root disk that is missing, another, cut off or a bomb', async () => {
  const folder = join(root, 'disks');
  mkdirSync(folder);
  const path = join(folder, 'one.tar.zst');
  copyFileSync(one, path);
  const withDisk = async (content: Buffer | undefined): Promise<string[]> => {
    if (content) writeFileSync(join(folder, sidecar), content);
    const taken = join(folder, 'taken');
    const said = await Promise.all([code(unpack(target, { path })), code(takeDisk(target, { path, disk: taken }))]);
    assert.equal([target.tags(), existsSync(taken)], said[0] === 'accepted' ? [['base'], true] : [[], false]);
    if (said[0] === 'accepted') target.remove('base');
    rmSync(taken, { force: true });
    return said;
  };
  const right = readFileSync(join(root, 'one', sidecar));
  assert.equal(await withDisk(undefined), ['PACK_SIDECAR_MISSING', 'PACK_SIDECAR_MISSING']);
  assert.equal(await withDisk(right), ['accepted', 'accepted']);
  for (const bad of [
    compress(Buffer.from(rootfs).fill('x', MiB, MiB + 1)),
    right.subarray(0, right.length - 5),
    compress(Buffer.alloc(64 * MiB)),
    Buffer.from('no zstd'),
    Buffer.alloc(0),
  ])
    assert.equal(await withDisk(bad), ['PACK_INVALID', 'PACK_INVALID'], `${bad.length} bytes`);
  rmSync(join(folder, sidecar));
  execFileSync('mkfifo', [join(folder, sidecar)]);
  assert.equal(await withDisk(undefined), ['PACK_SIDECAR_MISSING', 'PACK_SIDECAR_MISSING'], 'a pipe');
  rmSync(join(folder, sidecar));
  // `pack` leaves a right one as it is, and replaces any other.
  const own = new Store(join(root, 'from'));
  await pack(own, { tag: 'base', out: path, version: 1 });
  const written = statSync(join(folder, sidecar));
  assert.equal(await withDisk(undefined), ['accepted', 'accepted']);
  await pack(own, { tag: 'base', out: path, version: 1 });
  assert.is(statSync(join(folder, sidecar)).ino, written.ino);
  rmSync(folder, { recursive: true });
});

plain('of a pack of another engine the root disk can be had, and nothing else', async () => {
  const folder = join(root, 'theirs');
  mkdirSync(folder);
  const files: Record<string, Buffer> = {
    'snapshot.json': Buffer.from('{"vmstate":"/a/vmstate","memory":"/a/memory.bin","volumes":[]}'),
    vmstate: Buffer.from('firecracker'),
    'rootfs.ext4': rootfs,
    'memory.bin': randomBytes(MiB),
  };
  const theirs = async (names: string[], more: object = {}): Promise<string> => {
    const list = names.map((name) => ({
      path: name,
      size: files[name]?.length,
      sha256: sha256(files[name] as Buffer),
    }));
    for (const name of names) writeFileSync(join(folder, name), files[name] as Buffer);
    writeFileSync(
      join(folder, 'manifest.toml'),
      stringify({
        forkd_pack_version: 1,
        tag: 'theirs',
        created_at: '2026-01-01T00:00:00Z',
        forkd_version: '0.5.3',
        files: list,
        ...more,
      }),
    );
    const path = join(root, 'one', 'theirs.tar.zst');
    writeFileSync(path, compress(packed(folder, ['manifest.toml', ...names])));
    return path;
  };
  const taken = join(root, 'taken.ext4');
  const inside = await theirs(['snapshot.json', 'vmstate', 'rootfs.ext4', 'memory.bin']);
  assert.is(await code(unpack(target, { path: inside })), 'PACK_OTHER_ENGINE');
  assert.equal(await takeDisk(target, { path: inside, disk: taken }), { disk: taken, disk_bytes: rootfs.length });
  assert.ok(readFileSync(taken).equals(rootfs));
  assert.ok(statSync(taken).blocks * 512 < rootfs.length, 'zeros are holes');
  const digest = { target_path: '/etc/passwd', sha256: sha256(rootfs), size: rootfs.length };
  rmSync(taken);
  const beside = await theirs(['snapshot.json', 'vmstate', 'memory.bin'], { rootfs: digest });
  assert.is(await code(unpack(target, { path: beside })), 'PACK_OTHER_ENGINE');
  const cli = await forkd(['unpack', beside, '--disk', taken, '--json'], { env: { XDG_DATA_HOME: join(root, 'xdg') } });
  assert.equal(JSON.parse(cli.stdout), { disk: taken, disk_bytes: rootfs.length }, cli.stderr);
  assert.ok(readFileSync(taken).equals(rootfs));
  const none = await theirs(['vmstate', 'memory.bin']);
  assert.is(await code(unpack(target, { path: none })), 'PACK_OTHER_ENGINE', 'without a snapshot.json');
  assert.is(await code(takeDisk(target, { path: none, disk: join(root, 'no') })), 'PACK_INVALID', 'without a disk');
  assert.equal([target.tags(), existsSync(join(root, 'no'))], [[], false]);
});

plain('the root disk of a pack of version 3', async () => {
  const [path, taken] = [join(root, 'three.tar.zst'), join(root, 'three.ext4')];
  await pack(store, { tag: 'child', out: path });
  assert.is((await takeDisk(target, { path, disk: taken })).disk_bytes, rootfs.length);
  assert.ok(readFileSync(taken).equals(rootfs));
  const bytes = readFileSync(path);
  writeFileSync(path, bytes.subarray(0, bytes.length - 100));
  assert.is(await code(takeDisk(target, { path, disk: join(root, 'no') })), 'PACK_INVALID');
  assert.not(existsSync(join(root, 'no')));
});

plain('no signature, no trust; what cannot be said in these versions is refused', async () => {
  const { publicKey } = generateKeyPairSync('ed25519');
  assert.is(await code(unpack(target, { path: one, trusted: [publicKey] })), 'PACK_UNTRUSTED');
  assert.is(
    await code(takeDisk(target, { path: one, disk: join(root, 'no'), trusted: [publicKey] })),
    'PACK_UNTRUSTED',
  );
  assert.is(await code(pack(store, { tag: 'child', out: join(root, 'no'), version: 1 })), 'PACK_UNSUPPORTED');
  const env = { XDG_DATA_HOME: join(root, 'xdg') };
  for (const [args, said] of [
    [['pack', '--tag', 'x', '--pack-version', '4'], /--pack-version '4' is none of 1, 2 and 3/],
    [['pack', '--tag', 'x', '--pack-version', '1', '--encrypt', 'age1x'], /--encrypt needs version 3/],
    [['pack', '--tag', 'x', '--pack-version', '2', '--sign', 'key'], /--sign needs version 3/],
    [['unpack', one, '--disk', 'd', '--tag', 't'], /--tag is of no use with --disk/],
    [['pull', 'http://127.0.0.1:1/x', '--disk', 'd', '--lazy'], /--disk is fetched whole/],
  ] as const) {
    const { code: exit, stderr } = await forkd([...args], { env });
    assert.equal([exit, said.test(stderr)], [2, true], stderr);
  }
  assert.not(existsSync(join(root, 'no')));
});

plain('cut off, or with bytes that are not zstd, nothing is left', async () => {
  const bytes = readFileSync(one);
  const path = join(root, 'one', 'cut.tar.zst');
  for (const end of [100, 1000, bytes.length >> 1, bytes.length - 1]) {
    writeFileSync(path, bytes.subarray(0, end));
    assert.is(await code(unpack(target, { path })), 'PACK_INVALID', `${end} bytes`);
  }
  writeFileSync(path, Buffer.concat([bytes, Buffer.from('more')]));
  assert.is(await code(unpack(target, { path })), 'PACK_INVALID', 'more behind it');
  writeFileSync(path, Buffer.concat([bytes, compress(Buffer.from('more'))]));
  assert.is(await code(unpack(target, { path })), 'PACK_INVALID', 'more behind the end');
  const aborted = AbortSignal.abort();
  assert.is(await code(unpack(target, { path: one }, { signal: aborted })), 'CANCELLED');
  assert.is(await code(pack(store, { tag: 'base', out: path, version: 1 }, { signal: aborted })), 'CANCELLED');
  assert.equal(target.tags(), []);
  assert.equal(target.abandoned(), []);
});

plain.run();
