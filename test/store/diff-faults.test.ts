/** What may go wrong while a diff is written, or while two processes work on one tag. Memory is real; there is no VM. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { Store } from '../../src/main/store/store.js';
import { code, putBase, putDiff, readPages, Subject, spread } from '../support/layers.js';

const faults = suite<{ root: string; store: Store; subject: Subject }>('faults of a diff');

faults.before.each(async (context) => {
  context.root = mkdtempSync(join(tmpdir(), 'diff-faults-'));
  context.store = new Store(join(context.root, 'snapshots'));
  context.subject = await Subject.start();
});
faults.after.each(async ({ root, subject }) => {
  await subject.end();
  rmSync(root, { recursive: true, force: true });
});

const tagsAndLeftovers = (store: Store) => readdirSync(store.root).filter((name) => !name.startsWith('.locks'));

faults('a file system that fills up in the middle of a diff: no new tag, the old ones whole', async (context) => {
  const { root, subject } = context;
  // 240 different pages are twice what fits, so it is the writing of the layer that stops.
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', root]);
  if (mounted.status !== 0) return; // needs root
  try {
    const store = new Store(join(root, 'snapshots'));
    putBase(store, 'base', { 0: 1 });
    await subject.write(spread(240));
    assert.is(
      code(() => putDiff(store, 'full', 'base', subject)),
      'ENOSPC',
    );
    assert.equal(tagsAndLeftovers(store), ['base']);
    assert.equal(readPages(store, 'base'), { 0: 1 });
    // With room the same child can be written.
    spawnSync('mount', ['-o', 'remount,size=8m', root]);
    putDiff(store, 'full', 'base', subject);
    assert.equal(readPages(store, 'full'), { 0: 1, ...spread(240) });
  } finally {
    spawnSync('umount', [root]);
  }
});

faults(
  'a flipped bit at 300 places all over a stored diff is either refused or changes nothing',
  async ({ store, subject }) => {
    putBase(store, 'base', { 0: 1 });
    await subject.write({ 16: 7 });
    const layer = join(putDiff(store, 'child', 'base', subject), 'memory.layer');
    const whole = readPages(store, 'child');
    const bytes = readFileSync(layer);
    const step = Math.max(1, Math.floor(statSync(layer).size / 300));
    for (let at = 0; at < bytes.length; at += step) {
      const flipped = Buffer.from(bytes);
      flipped.writeUInt8(bytes.readUInt8(at) ^ (1 << (at % 8)), at);
      writeFileSync(layer, flipped);
      const refused = code(() => assert.equal(readPages(store, 'child'), whole, `byte ${at}`));
      assert.ok(refused === 'no error' || /^(SNAPSHOT_|PARENT_|LAYER_DAMAGED)/.test(refused), `byte ${at}: ${refused}`);
    }
  },
);

faults.run();
