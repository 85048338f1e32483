/** tools/inspect, a second reader of the format, agrees with the addon; and the format's page with both. */
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { random } from '../support/random.js';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { native } from '../../src/native/binding.js';
import {
  contents,
  ENTRY,
  ENTRY_BYTES,
  edited,
  entryAt,
  Files,
  HEADER,
  mixedImage,
  PAGE_BYTES,
  packed,
  raw,
  sign,
} from './layers.js';

const root = join(import.meta.dirname, '../../..');
const test = suite<{ files: Files }>('tools/inspect');
const parentRoot = 'ab'.repeat(32);

test.before.each((context) => {
  context.files = new Files();
});
test.after.each(({ files }) => files.remove());

function inspect(files: Files, file: Uint8Array, ...args: string[]) {
  const path = join(files.folder, 'memory.layer');
  writeFileSync(path, file);
  return spawnSync(join(root, 'tools/inspect'), [path, ...args], { encoding: 'utf8' });
}

test('says what the addon says', ({ files }) => {
  for (const options of [raw, packed, { ...packed, parentRoot }]) {
    const layer = files.file();
    const image = mixedImage(30);
    image.copy(image, 20 * CHUNK_BYTES, 0, CHUNK_BYTES); // a shared frame
    native.layerWriteImage(files.memory(image), layer, options);
    const { status, stdout, stderr } = inspect(files, contents(layer), '--json', '--verify');
    assert.is(status, 0, stderr);
    const report = JSON.parse(stdout) as Record<string, unknown>;
    const info = native.layerOpen(layer);
    assert.is(report['root'], info.root);
    assert.is(report['parent_root'], info.parentRoot);
    assert.is(report['image_bytes'], info.imageBytes);
    assert.is(report['file_bytes'], info.fileBytes);
    assert.is(report['data_bytes'], info.dataBytes);
    assert.is(report['entries'], info.entries);
    assert.is(report['data_pages'], info.dataPages);
    assert.is(report['zero_pages'], info.zeroPages);
    assert.is(report['unique_frames'], info.uniqueFrames);
    assert.is(report['shared_frames'], info.sharedFrames);
    assert.is(info.sharedFrames, 1);
    assert.is(report['verified_frames'], info.uniqueFrames + info.sharedFrames);
  }
});

test('prints for people, and lists the index', ({ files }) => {
  const layer = files.file();
  const { root } = native.layerWriteImage(files.memory(mixedImage(3)), layer, raw);
  const { status, stdout } = inspect(files, contents(layer), '--entries');
  assert.is(status, 0);
  assert.match(stdout, root);
  assert.match(stdout, 'none: this is a base');
  assert.is(stdout.split('\n').filter((line) => /^ +\d+ +[0-9a-f]{4} 0000 +raw/.test(line)).length, 3);
});

test('finds damage in frames only with --verify, and names the chunk', ({ files }) => {
  for (const options of [raw, packed]) {
    const layer = files.file();
    native.layerWriteImage(files.memory(mixedImage(3)), layer, options);
    const bad = edited(contents(layer), (copy) => (copy[entryAt(copy, 0) - 1]! ^= 1));
    assert.is(inspect(files, bad).status, 0);
    const { status, stderr } = inspect(files, bad, '--verify');
    assert.is(status, 1);
    assert.match(stderr, /chunk 2: (hash mismatch|compressed frame is damaged)/);
  }
});

test('refuses what the addon refuses, and nothing else', ({ files }) => {
  const below = random(3);
  const layer = files.file();
  native.layerWriteImage(files.memory(mixedImage(6)), layer, packed);
  const file = contents(layer);
  const numbers = [0, 1, 0x10000, 0xffffffff];
  let refused = 0;
  for (let round = 0; round < 24; round++) {
    const changed = edited(file, (copy) => {
      const entry = entryAt(copy, 0) + below(5) * ENTRY_BYTES;
      if (below(3) === 0) copy.writeUInt32LE(numbers[below(4)]!, 8 + 4 * below(10));
      else if (below(2) === 0) copy.writeUInt32LE(numbers[below(4)]!, entry + 4 * below(6));
      else copy[entry + ENTRY.hash]! ^= 1;
      if (below(4) > 0) sign(copy);
    });
    let accepted = true;
    try {
      native.layerOpen(files.file(changed));
    } catch {
      accepted = false;
      refused++;
    }
    const { status, stderr } = inspect(files, changed);
    assert.is(status, accepted ? 0 : 1, `round ${round}: ${stderr}`);
  }
  assert.ok(refused > 5 && refused < 24);
});

test('wrong usage, no such file, no layer', ({ files }) => {
  assert.is(spawnSync(join(root, 'tools/inspect'), []).status, 2);
  assert.is(spawnSync(join(root, 'tools/inspect'), ['a', 'b']).status, 2);
  assert.is(spawnSync(join(root, 'tools/inspect'), ['a', '--what']).status, 2);
  const missing = spawnSync(join(root, 'tools/inspect'), [join(files.folder, 'missing')], { encoding: 'utf8' });
  assert.is(missing.status, 1);
  assert.match(missing.stderr, 'ENOENT');
  assert.match(inspect(files, Buffer.alloc(PAGE_BYTES)).stderr, 'not a layer file');
});

test('docs/reference/snapshot-format.md has the fields where they are', () => {
  const page = readFileSync(join(root, 'docs/reference/snapshot-format.md'), 'utf8');
  const fieldsOf = (section: string) =>
    Object.fromEntries(
      [...(page.split(`### ${section}\n`)[1]?.split('\n#')[0] ?? '').matchAll(/^\| (\d+) +\| \d+ +\| `(\w+)`/gm)].map(
        ([, offset, name]) => [name!.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase()), Number(offset)],
      ),
    );
  const { padding, ...header } = HEADER;
  assert.equal(fieldsOf('Header'), header);
  assert.equal(fieldsOf('Index'), ENTRY);
  assert.is(padding, 112);
});

test.run();
