/** The list of chunks that a snapshot's next start loads first: anybody may have written it. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { WORKING_SET_FILE } from '../../src/contract/snapshot.js';
import { readWorkingSet, writeWorkingSet } from '../../src/main/store/working-set.js';

const CHUNKS = 100;

const sets = suite<{ dir: string; file: string }>('working set');

sets.before.each((context) => {
  context.dir = mkdtempSync(join(tmpdir(), 'working-set-'));
  context.file = join(context.dir, WORKING_SET_FILE);
});
sets.after.each(({ dir }) => rmSync(dir, { recursive: true, force: true }));

sets('comes back in its order, and replaces the one before', ({ dir }) => {
  for (const list of [[7], [99, 0, 3], Array.from({ length: CHUNKS }, (_, i) => CHUNKS - 1 - i)]) {
    writeWorkingSet(dir, Uint32Array.from(list));
    assert.equal([...(readWorkingSet(dir, CHUNKS) ?? [])], list);
    assert.equal(readdirSync(dir), [WORKING_SET_FILE]);
  }
});

const NONSENSE: [name: string, bytes: Uint8Array][] = [
  ['nothing', new Uint8Array(0)],
  ['half a number', Uint8Array.of(1, 0, 0, 0, 2)],
  ['a chunk outside the image', new Uint8Array(Uint32Array.of(1, CHUNKS).buffer)],
  ['the largest number', new Uint8Array(4).fill(0xff)],
  ['a chunk twice', new Uint8Array(Uint32Array.of(4, 5, 4).buffer)],
  ['more than the image has', new Uint8Array(Uint32Array.from({ length: CHUNKS + 1 }, (_, i) => i).buffer)],
  ['far more', new Uint8Array(1 << 20)],
];

for (const [name, bytes] of NONSENSE) {
  sets(`${name} counts as none`, ({ dir, file }) => {
    writeFileSync(file, bytes);
    assert.is(readWorkingSet(dir, CHUNKS), undefined);
  });
}

sets('what is no file counts as none, and nobody waits for it', ({ dir, file }) => {
  assert.is(readWorkingSet(dir, CHUNKS), undefined);
  execFileSync('mkfifo', [file]);
  assert.is(readWorkingSet(dir, CHUNKS), undefined);
  rmSync(file);
  mkdirSync(file);
  assert.is(readWorkingSet(dir, CHUNKS), undefined);
});

sets('where it cannot be written nothing happens', ({ dir, file }) => {
  mkdirSync(file);
  writeWorkingSet(dir, Uint32Array.of(1));
  assert.equal(readdirSync(dir), [WORKING_SET_FILE]);
  writeWorkingSet(join(dir, 'gone'), Uint32Array.of(1));
});

sets.run();
