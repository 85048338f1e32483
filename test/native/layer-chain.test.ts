import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { random } from '../support/random.js';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { ABSENT, CHUNK_BYTES, PageMap, PRESENT } from '../../src/contract/page-map.js';
import { native } from '../../src/native/binding.js';
import {
  contents,
  ENTRY,
  edited,
  entryAt,
  Files,
  imageOf,
  memoryOf,
  mixedImage,
  PAGE_BYTES,
  packed,
  pageOf,
  raw,
} from './layers.js';
import { compileSubject, Subject } from './private-subject.js';

interface Context {
  program: string;
  build: string;
  files: Files;
}
const test = suite<Context>('native layer chain');

test.before((context) => {
  context.build = mkdtempSync(join(tmpdir(), 'forkd-subject-'));
  context.program = compileSubject(context.build);
});
test.after(({ build }) => rmSync(build, { recursive: true }));
test.before.each((context) => {
  context.files = new Files();
});
test.after.each(({ files }) => files.remove());

/** Adds a diff to a chain: what a process does to the chain's memory. `model` is changed in the same way. */
async function addDiff(
  { files, program }: Context,
  layers: number[],
  changes: ['write' | 'zero', page: number, seed: number][],
  model?: Buffer,
  zstdLevel = 0,
): Promise<number> {
  const memfd = memoryOf(files, layers);
  const subject = new Subject(program, memfd);
  await subject.do(...changes.map((change) => change.join(' ')));
  const target = files.file();
  const parentRoot = native.layerOpen(layers.at(-1)!).root;
  native.layerWriteProcess(subject.pid, memfd, target, { zstdLevel, parentRoot });
  await subject.end();
  for (const [kind, page, seed] of changes) {
    (kind === 'write' ? pageOf(seed) : Buffer.alloc(PAGE_BYTES)).copy(model ?? Buffer.alloc(0), page * PAGE_BYTES);
  }
  return target;
}

test('a chain of 8 with random changes equals the model at every depth, and so does its compaction', async (context) => {
  const { files } = context;
  const below = random(42);
  const model = mixedImage(30);
  const pages = model.length / PAGE_BYTES;
  const layers = [files.file()];
  native.layerWriteImage(files.memory(model), layers[0]!, packed);
  for (let depth = 1; depth <= 8; depth++) {
    const changes = Array.from({ length: 60 }, () => {
      return [below(3) === 0 ? 'zero' : 'write', below(pages), below(depth === 4 ? 3 : 2 ** 31)] as const;
    }).map(([kind, page, seed]) => [kind, page, seed] as ['write' | 'zero', number, number]);
    layers.push(await addDiff(context, layers, changes, model, depth % 2));
    assert.ok(imageOf(layers).equals(model), `depth ${depth}`);
    assert.ok(contents(memoryOf(files, layers)).equals(model), `memory at depth ${depth}`);

    const whole = files.file();
    const written = native.layerCompact(layers, whole, { zstdLevel: depth % 3 });
    assert.ok(imageOf([whole]).equals(model), `compacted at depth ${depth}`);
    const info = native.layerOpen(whole);
    assert.is(info.parentRoot, null);
    assert.is(info.zeroPages, 0);
    assert.is(info.root, written.root);
    assert.is(info.fileBytes, contents(whole).length);
  }
});

test('a compacted base may stand for what it was made of', async (context) => {
  const { files } = context;
  const model = mixedImage(8);
  const base = files.file();
  native.layerWriteImage(files.memory(model), base, raw);
  const diff = await addDiff(context, [base], [['write', 3, 9]], model);
  const whole = files.file();
  native.layerCompact([base, diff], whole, { zstdLevel: 0 });
  const next = await addDiff(context, [whole], [['zero', 3, 0]], model);
  assert.ok(imageOf([whole, next]).equals(model));
  // A lone base compacts to itself.
  const again = files.file();
  native.layerCompact([whole], again, { zstdLevel: 0 });
  assert.ok(contents(again).equals(contents(whole)));
});

test('a compaction that meets damage is an error and leaves an empty file', async (context) => {
  const { files } = context;
  const base = files.file();
  native.layerWriteImage(files.memory(mixedImage(8)), base, raw);
  const file = contents(base);
  const bad = files.file(edited(file, (copy) => (copy[entryAt(file, 0) - 1]! ^= 1)));
  const target = files.file(Uint8Array.of(1));
  assert.throws(() => native.layerCompact([bad], target, { zstdLevel: 0 }), /hash mismatch \(layer 0\)/);
  assert.is(contents(target).length, 0);
  assert.throws(() => native.layerCompact([base], base, { zstdLevel: 0 }), /EINVAL/);
  assert.ok(contents(base).equals(file));
});

test('layers in the wrong order, of another chain or of another size are refused by name', async (context) => {
  const { files } = context;
  const [base, other, larger] = [files.file(), files.file(), files.file()];
  native.layerWriteImage(files.memory(mixedImage(8)), base, raw);
  native.layerWriteImage(files.memory(mixedImage(8, 2)), other, raw);
  native.layerWriteImage(files.memory(9 * CHUNK_BYTES), larger, {
    ...raw,
    parentRoot: native.layerOpen(base).root,
  });
  const first = await addDiff(context, [base], [['write', 1, 1]]);
  const second = await addDiff(context, [base, first], [['write', 2, 2]]);
  const refused = (layers: number[], layer: number, pattern: RegExp) =>
    assert.throws(
      () => native.sourceOpen(layers),
      (error: { code: string; reason: string; layer: number }) => {
        assert.is(error.code, 'LAYER_DAMAGED');
        assert.match(error.reason, pattern);
        assert.is(error.layer, layer);
        return true;
      },
    );
  refused([first], 0, /is not a base/);
  refused([first, base], 0, /is not a base/);
  refused([base, second], 1, /parent root does not match/);
  refused([base, second, first], 1, /parent root does not match/);
  refused([other, first], 1, /parent root does not match/);
  refused([base, base], 1, /parent root does not match/);
  refused([base, larger], 1, /image size differs/);
  native.sourceClose(native.sourceOpen([base, first, second]));
});

test('a frame that newer layers hide wholly is not read', async (context) => {
  const { files } = context;
  const model = Buffer.alloc(2 * CHUNK_BYTES);
  pageOf(1).copy(model, 0);
  pageOf(2).copy(model, CHUNK_BYTES);
  const base = files.file();
  native.layerWriteImage(files.memory(model), base, raw);
  const diff = await addDiff(
    context,
    [base],
    [
      ['write', 0, 7],
      ['zero', CHUNK_BYTES / PAGE_BYTES, 0],
    ],
    model,
  );
  // The base's frames are damaged, and nobody notices: nothing needs them.
  const file = contents(base);
  const offset = Number(file.readBigUInt64LE(entryAt(file, 0) + ENTRY.offset));
  const bad = files.file(edited(file, (copy) => copy.fill(0, offset, entryAt(file, 0))));
  assert.ok(imageOf([bad, diff]).equals(model));
  const handle = native.sourceOpen([bad, diff]);
  assert.equal(native.sourceInfo(handle), {
    imageBytes: model.length,
    chunkBytes: CHUNK_BYTES,
    chunks: 2,
    layers: 2,
    zeroChunks: 1,
    storedBytes: PAGE_BYTES,
  });
  const into = new Uint8Array(CHUNK_BYTES);
  assert.is(native.sourceRead(handle, 0, into), PAGE_BYTES);
  assert.is(native.sourceRead(handle, 1, into), 0);
  native.sourceClose(handle);
});

test('sourceFill: what is claimed is left, zero chunks take no room, counters count, damage gives the chunk back', ({
  files,
}) => {
  const image = mixedImage(20);
  const layer = files.file();
  native.layerWriteImage(files.memory(image), layer, packed);
  const handle = native.sourceOpen([layer]);
  native.fdClose(native.fdDup(layer)); // the source has a descriptor of its own
  const memfd = files.memory(image.length);
  const map = PageMap.create(image.length);
  const stats = new BigInt64Array(new SharedArrayBuffer(24));
  map.claim(2);
  const result = native.sourceFill(handle, map.states, 0, 20, memfd, stats);
  assert.is(result.filled, 19);
  assert.is(result.skipped, 1);
  assert.is(result.bytes, 15 * CHUNK_BYTES);
  assert.equal([...stats], [19n, BigInt(result.readBytes), BigInt(result.bytes)]);
  assert.is(native.fdSize(memfd).allocated, 15 * CHUNK_BYTES);
  map.settle(2, false);
  native.sourceFill(handle, map.states, 0, 20, memfd, stats);
  assert.ok(contents(memfd).equals(image));
  assert.ok(map.states.every((state) => state === PRESENT));

  const file = contents(layer);
  const at = Number(file.readBigUInt64LE(entryAt(file, 5) + ENTRY.offset));
  const bad = native.sourceOpen([files.file(edited(file, (copy) => copy.fill(0, at, at + 100)))]);
  const again = PageMap.create(image.length);
  assert.throws(
    () => native.sourceFill(bad, again.states, 0, 20, memfd),
    (error: { code: string }) => error.code === 'LAYER_DAMAGED',
  );
  const chunk = file.readUInt32LE(entryAt(file, 5));
  assert.is(again.states[chunk], ABSENT);
  assert.ok(again.states.subarray(0, chunk).every((state) => state === PRESENT));

  assert.throws(() => native.sourceFill(handle, new Int32Array(19), 0, 19, memfd), /states/);
  assert.throws(() => native.sourceFill(handle, map.states, 1, 20, memfd), /count/);
  assert.throws(() => native.sourceFill(handle, map.states, 0, 20, memfd, new BigInt64Array(2)), /stats/);
  assert.throws(() => native.sourceRead(handle, 20, new Uint8Array(CHUNK_BYTES)), /chunk/);
  assert.throws(() => native.sourceRead(handle, 1, new Uint8Array(CHUNK_BYTES - 1)), /into/);
  assert.ok(native.sourceClose(bad));
  assert.ok(native.sourceClose(handle));
  assert.not(native.sourceClose(handle));
  assert.throws(() => native.sourceInfo(handle), /handle/);
});

test('a short last chunk does not make the memory longer', ({ files }) => {
  const image = mixedImage(3).subarray(0, 2 * CHUNK_BYTES + PAGE_BYTES);
  image.fill(1, 2 * CHUNK_BYTES);
  const layer = files.file();
  native.layerWriteImage(files.memory(image), layer, raw);
  assert.ok(contents(memoryOf(files, [layer])).equals(image));
});

test.run();
