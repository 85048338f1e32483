import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { random } from '../support/random.js';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { type LayerInfo, native } from '../../src/native/binding.js';
import { inChild } from './in-child.js';
import {
  contents,
  ENTRY,
  ENTRY_BYTES,
  entryAt,
  Files,
  imageOf,
  mixedImage,
  PAGE_BYTES,
  pageOf,
  PAGES_PER_CHUNK,
  raw,
} from './layers.js';
import { fdCount } from './process.js';
import { compileSubject, Subject } from './private-subject.js';

interface Context {
  program: string;
  build: string;
  files: Files;
}
const test = suite<Context>('native layerWriteProcess');
const MIB = 1024 * 1024;
const MEMORY_BYTES = 160 * PAGE_BYTES;
const parentRoot = 'ab'.repeat(32);

test.before((context) => {
  context.build = mkdtempSync(join(tmpdir(), 'forkd-subject-'));
  context.program = compileSubject(context.build);
});
test.after(({ build }) => rmSync(build, { recursive: true }));
test.before.each((context) => {
  context.files = new Files();
});
test.after.each(({ files }) => files.remove());

/** Pages of a layer, by what it says of them. */
function ownedPages(layer: number): { data: number[]; zero: number[] } {
  const file = contents(layer);
  const data: number[] = [];
  const zero: number[] = [];
  for (let at = entryAt(file, 0); at < file.length; at += ENTRY_BYTES) {
    const chunk = file.readUInt32LE(at);
    for (let bit = 0; bit < PAGES_PER_CHUNK; bit++) {
      if ((file.readUInt16LE(at + ENTRY.dataMask) >> bit) & 1) data.push(chunk * PAGES_PER_CHUNK + bit);
      if ((file.readUInt16LE(at + ENTRY.zeroMask) >> bit) & 1) zero.push(chunk * PAGES_PER_CHUNK + bit);
    }
  }
  return { data, zero };
}

for (const scan of [true, false]) {
  const way = scan ? 'PAGEMAP_SCAN' : '/proc/PID/pagemap';
  for (const parts of [1, 5]) {
    test(`exactly the private pages, ${parts} mappings, by ${way}`, async ({ files, program }) => {
      const image = mixedImage(80);
      const memfd = files.memory(image);
      const base = files.file();
      const { root } = native.layerWriteImage(memfd, base, raw);
      const subject = new Subject(program, memfd, parts);
      await subject.do(
        ...[
          'read 0',
          'read 100',
          'write 1 11',
          'write 15 12',
          'write 16 13',
          'zero 40',
          'write 200 14',
          'write 319 15',
        ],
        // Back to the file; a page that is in the middle of a mapping of its own; one in its neighbour's chunk.
        ...[
          'pageout 200',
          'pageout 40',
          'write 60 1',
          'drop 60',
          'split 81',
          'write 81 16',
          'write 80 17',
          'write 64 18',
          'write 63 19',
        ],
      );
      const target = files.file();
      const written = native.layerWriteProcess(subject.pid, memfd, target, { zstdLevel: 0, parentRoot: root, scan });
      assert.equal(ownedPages(target), { data: [1, 15, 16, 63, 64, 80, 81, 200, 319], zero: [40] });
      assert.is(written.dirtyBytes, 10 * PAGE_BYTES);
      assert.is(written.dataBytes, 9 * PAGE_BYTES);

      const model = Buffer.from(image);
      const seeds = { 1: 11, 15: 12, 16: 13, 200: 14, 319: 15, 81: 16, 80: 17, 64: 18, 63: 19 };
      for (const [page, seed] of Object.entries(seeds)) pageOf(seed).copy(model, Number(page) * PAGE_BYTES);
      model.fill(0, 40 * PAGE_BYTES, 41 * PAGE_BYTES);
      assert.ok(imageOf([base, target]).equals(model));
      await subject.end();
    });
  }

  test(`a mapped zero page is a page that is now zero, by ${way}`, async ({ files, program }) => {
    const memfd = files.memory(MEMORY_BYTES);
    const subject = new Subject(program, memfd);
    await subject.do('zeropage 35', 'write 36 1');
    const target = files.file();
    native.layerWriteProcess(subject.pid, memfd, target, { zstdLevel: 0, parentRoot, scan });
    assert.equal(ownedPages(target), { data: [36], zero: [35] });
    await subject.end();
  });

  test(`write-protected pages: right, though an untouched one may be stored too, by ${way}`, async ({
    files,
    program,
  }) => {
    const image = Buffer.alloc(MEMORY_BYTES, 7);
    const memfd = files.memory(image);
    const base = files.file();
    const { root } = native.layerWriteImage(memfd, base, raw);
    const subject = new Subject(program, memfd);
    await subject.do('write 3 5', 'protect 3', 'protect 4', 'read 40', 'protect 40');
    const target = files.file();
    native.layerWriteProcess(subject.pid, memfd, target, { zstdLevel: 0, parentRoot: root, scan });
    pageOf(5).copy(image, 3 * PAGE_BYTES);
    assert.ok(imageOf([base, target]).equals(image));
    await subject.end();
  });

  test(`nothing changed: an empty layer, by ${way}`, async ({ files, program }) => {
    const memfd = files.memory(mixedImage(MEMORY_BYTES / CHUNK_BYTES));
    const subject = new Subject(program, memfd);
    await subject.do('read 1', 'read 2');
    const target = files.file();
    const written = native.layerWriteProcess(subject.pid, memfd, target, { zstdLevel: 0, parentRoot, scan });
    assert.is(written.dirtyBytes, 0);
    assert.is(written.entries, 0);
    assert.is(native.layerOpen(target).parentRoot, parentRoot);
    await subject.end();
  });
}

test('written bytes stay near the dirtied, dense and scattered', async ({ files, program }) => {
  const memfd = files.memory(256 * MIB);
  for (const commands of [
    ['fill 1000 8192 5'],
    Array.from({ length: 4096 }, (_, i) => `write ${i * 16 + (i % 16)} ${i}`),
    Array.from({ length: 8000 }, (_, i) => `write ${random(i)(65536)} ${i}`),
  ]) {
    const subject = new Subject(program, memfd);
    await subject.do(...commands);
    for (const scan of [true, false]) {
      const target = files.file();
      const written = native.layerWriteProcess(subject.pid, memfd, target, { zstdLevel: 0, parentRoot, scan });
      const { dataPages, zeroPages, fileBytes }: LayerInfo = native.layerOpen(target);
      assert.is((dataPages + zeroPages) * PAGE_BYTES, written.dirtyBytes);
      assert.ok(written.dirtyBytes >= 4096 * PAGE_BYTES);
      assert.ok(fileBytes <= 1.05 * written.dirtyBytes + MIB, `${fileBytes} for ${written.dirtyBytes}`);
    }
    await subject.end();
  }
});

test('what cannot be is named, and leaves no layer', async ({ files, program }) => {
  const memfd = files.memory(MEMORY_BYTES);
  const target = files.file();
  const write = (pid: number, memory = memfd, to = target) =>
    native.layerWriteProcess(pid, memory, to, { zstdLevel: 0, parentRoot });
  const before = fdCount();

  assert.throws(() => write(process.pid), /ENXIO.*private mapping/);
  const subject = new Subject(program, memfd);
  await subject.do('write 3 1');
  assert.throws(() => write(subject.pid, files.memory(CHUNK_BYTES)), /ENXIO.*private mapping/);
  assert.throws(() => write(subject.pid, memfd, memfd), /EINVAL.*ftruncate/);
  await subject.do('write 20 1', 'hide 20');
  assert.throws(() => write(subject.pid), /EFAULT.*process_vm_readv/);
  assert.is(contents(target).length, 0);
  await subject.do('again');
  assert.throws(() => write(subject.pid), /EEXIST.*two private mappings/);
  await subject.end();
  assert.throws(() => write(subject.pid), /ESRCH/);
  assert.is(contents(target).length, 0);
  assert.throws(
    () => native.layerWriteProcess(process.pid, memfd, target, { zstdLevel: 0 } as { zstdLevel: 0; parentRoot: '' }),
    /parentRoot/,
  );
  assert.ok(fdCount() <= before + 1, 'descriptors are left'); // the memory made above
});

test('a process that dies in the middle: an error and an empty file, or a layer that is whole', async () => {
  const { whole, died, bad } = (await inChild('layer-dying-process', 120_000)) as Record<string, number>;
  assert.is(bad, 0);
  assert.is(whole! + died!, 12);
  assert.ok(died! > 0);
});

test.run();
