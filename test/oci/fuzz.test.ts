/** Damaged layers and archives: whatever the bytes, a whole file system is made, or an Error says why not. Seeded, so that a failure can be repeated. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';

import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { limits } from '../../src/contract/limits.js';
import { header } from '../../src/main/hub/tar-writer.js';
import { Disk } from '../../src/main/oci/ext4/disk.js';
import { writeExt4 } from '../../src/main/oci/ext4/write.js';
import { applyLayers } from '../../src/main/oci/image.js';
import { openImage } from '../../src/main/oci/open.js';
import { readTar, StreamBytes } from '../../src/main/oci/tar.js';
import { Tree } from '../../src/main/oci/tree.js';
import { buildImage, layer, ociArchive } from '../support/oci.js';
import { damaged, forgedAt, random } from '../support/random.js';
import { suite } from '../support/suite.js';

const SEED = 0x5eed;
const ROUNDS = 150;

const root = mkdtempSync(join(tmpdir(), 'fuzz-'));
const next = random(SEED);

/** In what may be a header. */
const forged = (bytes: Buffer): Buffer => forgedAt(bytes, next(Math.floor(bytes.length / 512)) * 512, next);

const test = suite('fuzz of images');
test.after(() => rmSync(root, { recursive: true, force: true }));

test('an archive with more entries than an image may have ends there', async () => {
  const some = Buffer.concat(Array<Buffer>(2000).fill(header('a', 0)));
  let parts = 0;
  const endless = async function* () {
    for (; ; parts++) yield some;
  };
  let entries = 0;
  const read = async () => {
    for await (const { entry } of readTar(new StreamBytes(endless()))) entries += entry.size === 0 ? 1 : 0;
  };
  const error = await read().catch((one: Error) => one);
  assert.match(String(error), /more than 1000000 entries/);
  assert.equal([entries, parts], [limits.imageEntriesMax, limits.imageEntriesMax / 2000]);
});

test('layers with more entries together than an image may have end there, though each has fewer', async () => {
  const some = Buffer.concat([...Array<Buffer>(2000).fill(header('a', 0)), Buffer.alloc(1024)]);
  const begun: number[] = [];
  const layers = [0, 1, 2, 3].map((number) => ({
    size: some.length,
    open: async function* () {
      begun.push(number);
      yield some;
    },
  }));
  const path = join(root, 'entries');
  const disk = new Disk(path);
  const tree = new Tree(disk);
  // As if layers before had had them: a million takes ten seconds.
  tree.entries = limits.imageEntriesMax - 5000;
  try {
    const error = await applyLayers(tree, layers).catch((one: Error) => one);
    assert.match(String(error), /more than 1000000 entries/);
    // Half of the third, and the one that was too many.
    assert.equal([begun, tree.entries], [[0, 1, 2], limits.imageEntriesMax + 1]);
  } finally {
    await disk.close();
    rmSync(path, { force: true });
  }
});

test('layers', async () => {
  const good = await layer([
    { name: 'a/', type: 'directory' },
    { name: 'a/file', body: 'content' },
    { name: 'a/link', type: 'symlink', to: '../..' },
    { name: 'a/link/escaped', body: 'x' },
    { name: 'b', type: 'link', to: 'a/file' },
    { name: 'dev/null', type: 'character-device', devmajor: 1, devminor: 3 },
    { name: `long/${'n'.repeat(150)}/${'m'.repeat(150)}`, body: 'long' },
    { name: 'a/.wh.file' },
    { name: 'x', body: 'x', pax: { 'SCHILY.xattr.user.note': 'n' } },
  ]);
  let refused = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const bytes = round % 2 === 0 ? forged(good) : damaged(round % 4 === 1 ? gzipSync(good) : good, next);
    mkdirSync(join(root, 'outer'), { recursive: true });
    const path = join(root, 'outer', 'disk');
    const disk = new Disk(path);
    const open = async function* () {
      yield bytes;
    };
    try {
      const tree = new Tree(disk);
      await applyLayers(tree, [{ size: bytes.length, open }]);
      await writeExt4(tree, disk, { minBytes: 0 });
      execFileSync('/usr/sbin/e2fsck', ['-fn', path], { stdio: 'ignore' });
    } catch (error) {
      refused++;
      const { syscall, message, status } = error as Error & { syscall?: string; status?: number };
      assert.is(status, undefined, `seed ${SEED}, round ${round}: e2fsck finds something wrong`);
      // A sentence of ours, not an accident: no error of the system, and none of JavaScript.
      const isOurs = syscall === undefined && !(error instanceof TypeError || error instanceof RangeError);
      assert.ok(isOurs, `seed ${SEED}, round ${round}: ${message}`);
    }
    await disk.close();
    assert.equal(readdirSync(join(root, 'outer')), ['disk'], `seed ${SEED}, round ${round}: something lies outside`);
    assert.equal(readdirSync(root), ['outer'], `seed ${SEED}, round ${round}: something lies outside`);
    rmSync(join(root, 'outer'), { recursive: true });
  }
  assert.ok(refused > ROUNDS / 4, `only ${refused} of ${ROUNDS} were refused`);
});

test('archives', async () => {
  const image = buildImage([await layer([{ name: 'hello', body: 'hello' }])], { Env: ['A=1'] });
  const good = await ociArchive(image);
  const path = join(root, 'image.tar');
  const work = join(root, 'work');
  for (let round = 0; round < ROUNDS; round++) {
    writeFileSync(path, round % 2 === 0 ? forged(good) : damaged(good, next));
    mkdirSync(work);
    const error = await openImage(path, work, work).then(
      () => undefined,
      (one: unknown) => one,
    );
    if (error !== undefined)
      assert.ok(
        error instanceof ForkdError && /^IMAGE_(INVALID|UNSUPPORTED)$/.test(error.code),
        `seed ${SEED}, round ${round}: ${String(error)}`,
      );
    rmSync(work, { recursive: true });
  }
});

test.run();
