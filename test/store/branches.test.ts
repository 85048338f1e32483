/** The tree of branches: a tag made to mean another snapshot, and what may go. Without VMs: what is tested is the store. */
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { LiveChild, PruneRequest, TreeNode } from '../../src/contract/branches.js';
import { parseAge } from '../../src/contract/units.js';
import { planPrune, prune } from '../../src/main/branches/prune.js';
import { type Found, growTree } from '../../src/main/branches/tree.js';
import { promote } from '../../src/main/store/promote.js';
import { Store } from '../../src/main/store/store.js';
import { native } from '../../src/native/binding.js';
import { code, putBase, putDiff, readPages, Subject } from '../support/layers.js';

interface Context {
  root: string;
  store: Store;
  subject: Subject;
}

const branches = suite<Context>('branches');

branches.before(async (context) => {
  context.subject = await Subject.start();
  await context.subject.write({ 16: 7 });
});
branches.before.each((context) => {
  context.root = mkdtempSync(join(tmpdir(), 'branches-'));
  context.store = new Store(join(context.root, 'snapshots'));
  const { store, subject } = context;
  putBase(store, 'main', { 0: 1 });
  putDiff(store, 'one', 'main', subject);
  putDiff(store, 'two', 'main', subject);
  putDiff(store, 'deep', 'one', subject);
});
branches.after.each(({ root }) => rmSync(root, { recursive: true, force: true }));
branches.after(({ subject }) => subject.end());

const WHOLE = { 0: 1, 16: 7 };

/** `tag(children)`, with `!` and an id for each sandbox. */
const shape = ({ tag, children, sandboxes }: TreeNode): string => {
  const below = [...sandboxes.map(({ id }) => `!${id}`), ...children.map(shape)];
  return below.length === 0 ? tag : `${tag}(${below.join(' ')})`;
};

const found = (store: Store, more: Partial<Found> = {}): Found => ({
  snapshots: store.list(),
  sandboxes: [],
  workspaces: [],
  ...more,
});

const drawn = (store: Store, more: Partial<Found> = {}): string =>
  growTree(found(store, more)).roots.map(shape).join(' ');

const live = (id: string, tag: string, root?: string): LiveChild => ({
  id,
  snapshot_tag: tag,
  ...(root === undefined ? {} : { snapshot_root: root }),
  pid: 1,
  created_at_unix: 1,
  owner: 'command',
});

branches('a child is made what its parent was called: both are whole, and nobody loses a parent', async ({ store }) => {
  assert.is(drawn(store), 'main(one(deep) two)');
  const root = store.manifest('main').memory_root;
  const { previous, manifest } = await promote(store, { from: 'one', as: 'main' });
  assert.equal([previous, manifest.promoted_from, manifest.parent_tag], ['main-1', 'one', 'main-1']);
  assert.is(drawn(store), 'main-1(main one(deep) two)');
  for (const tag of ['main', 'one', 'two', 'deep']) assert.equal(readPages(store, tag), WHOLE, tag);
  assert.equal(readPages(store, 'main-1'), { 0: 1 });
  // A sandbox of before is shown where its memory is.
  assert.is(
    drawn(store, { sandboxes: [live('a', 'main', root), live('b', 'main')] }),
    'main-1(!a main(!b) one(deep) two)',
  );
  assert.equal(growTree(found(store, { sandboxes: [live('c', 'gone')] })).strays.length, 1);
  // What is opened, and so what is packed, says the name of now.
  const opened = store.hold('one');
  assert.equal([opened.manifest.parent_tag, opened.dirs.map(({ tag }) => tag)], ['main-1', ['main-1', 'one']]);
  opened.close();
  // Nothing was copied.
  const inode = (tag: string) => statSync(join(store.dir(tag), 'memory.layer')).ino;
  assert.is(inode('main'), inode('one'));
  assert.is(
    code(() => store.remove('main-1')),
    'SNAPSHOT_HAS_DEPENDENTS',
  );
  // And the grandchild; then back to what it was at first. What has a name besides needs no other.
  assert.is((await promote(store, { from: 'deep', as: 'main' })).previous, 'one');
  assert.is(drawn(store), 'main-1(one(deep main) two)');
  store.remove('deep');
  assert.is((await promote(store, { from: 'main-1', as: 'main' })).previous, 'main-2');
  assert.equal(readPages(store, 'main'), { 0: 1 });
  for (const tag of ['one', 'two', 'main-2']) assert.equal(readPages(store, tag), WHOLE, tag);
  // Children of a memory that two tags have lose none by the removal of one.
  assert.equal(store.remove('main-1'), ['main-1']);
  assert.is(
    code(() => store.remove('main')),
    'SNAPSHOT_HAS_DEPENDENTS',
  );
  assert.equal(readPages(store, 'two'), WHOLE);
});

branches('under a new tag; refused for one that is written, is not there, or is the same', async ({ store }) => {
  assert.is((await promote(store, { from: 'two', as: 'best' })).previous, undefined);
  assert.equal(readPages(store, 'best'), WHOLE);
  const refused = (from: string, as: string) =>
    promote(store, { from, as }).then(
      () => 'no error',
      (error: { code: string }) => error.code,
    );
  const lock = store.lock('main');
  assert.is(await refused('one', 'main'), 'SNAPSHOT_BUSY');
  lock.release();
  assert.is(await refused('nothing', 'main'), 'SNAPSHOT_NOT_FOUND');
  assert.is(await refused('main', 'main'), 'SNAPSHOT_EXISTS');
  assert.is(await refused('../x', 'main'), 'TAG_INVALID');
  assert.is(drawn(store), 'main(best one(deep) two)');
  assert.equal(readPages(store, 'main'), { 0: 1 });
});

branches('who uses what the tag was is still known', async ({ store }) => {
  const held = store.hold('main');
  await promote(store, { from: 'one', as: 'main' });
  assert.is(
    code(() => store.remove('main-1', { cascade: true })),
    'SNAPSHOT_IN_USE',
  );
  held.close();
  assert.is(drawn(store), 'main-1(main one(deep) two)');
});

branches('disks that a pack has put into the directory stay where others look for them', async ({ store }) => {
  const disk = join(store.dir('main'), 'rootfs.ext4');
  writeFileSync(disk, 'a disk');
  for (const tag of ['main', 'one', 'two', 'deep']) {
    const path = join(store.dir(tag), 'snapshot.json');
    const said = JSON.parse(readFileSync(path, 'utf8'));
    writeFileSync(
      path,
      JSON.stringify({ ...said, rootfs: disk, rootfs_digest: { ...said.rootfs_digest, path: disk } }),
    );
  }
  await promote(store, { from: 'one', as: 'main' });
  for (const tag of ['main', 'one', 'two', 'deep'])
    assert.is(readFileSync(store.manifest(tag).rootfs, 'utf8'), 'a disk');
  assert.is(store.manifest('main-1').rootfs, join(store.dir('main-1'), 'rootfs.ext4'));
  // Another disk of that name would be taken for it.
  putBase(store, 'other', { 0: 9 });
  writeFileSync(join(store.dir('other'), 'rootfs.ext4'), 'another');
  const error = await promote(store, { from: 'other', as: 'main' }).catch((e: { code: string }) => e.code);
  assert.is(error, 'SNAPSHOT_HAS_DEPENDENTS');
  assert.equal(readPages(store, 'main'), WHOLE);
});

/** What would go, and what was kept for which reason. */
const plan = (store: Store, request: PruneRequest, more: Partial<Found> = {}, now = 4e9) => {
  const { remove, kept } = planPrune(found(store, more), request, now, (tag) => store.userOf(tag));
  return { gone: remove.map(({ tag }) => tag), kept: Object.fromEntries(kept.map((one) => [one.tag, one.reason])) };
};

branches('only what nobody needs goes, children first', async ({ store }) => {
  assert.equal(plan(store, {}), { gone: ['deep', 'one', 'two'], kept: { main: 'it is a base' } });
  assert.equal(plan(store, { all: true }).gone, ['deep', 'one', 'two', 'main']);
  assert.equal(plan(store, { under: 'one' }).gone, ['deep']);
  assert.equal(plan(store, { only: ['one', 'two'] }).gone, ['two']);
  assert.match(plan(store, { only: ['one'] }).kept['one'] ?? '', "'deep' is made of it");
  assert.equal(plan(store, { older_than_secs: 60 }, {}, Date.now() / 1000).gone, []);
  assert.equal(plan(store, { keep: 3 }).gone, []);
  // A sandbox of deep needs one as well.
  const kept = plan(store, { all: true }, { sandboxes: [live('a', 'deep')] });
  assert.equal(kept.gone, ['two']);
  assert.match(kept.kept['deep'] ?? '', 'sandbox a');
  const workspace = { name: 'w', source_snapshot_tag: 'main', current_state_tag: 'two' };
  assert.equal(plan(store, { all: true }, { workspaces: [workspace] }).gone, ['deep', 'one']);
  const held = store.hold('two');
  assert.match(plan(store, {}).kept['two'] ?? '', 'in use by this process');
  held.close();
  assert.is(
    code(() => plan(store, { under: 'nothing' })),
    'SNAPSHOT_NOT_FOUND',
  );
  // What was promoted is not a loser, and what it was is what the others are made of.
  await promote(store, { from: 'two', as: 'main' });
  assert.equal(plan(store, {}).gone, ['deep', 'one', 'two']);
  assert.equal(plan(store, {}).kept['main'], 'it was promoted');
  const layer = statSync(join(store.dir('one'), 'memory.layer')).blocks * 512;
  const report = await prune(planPrune(found(store), {}, 4e9), false, (tag) => void store.remove(tag));
  assert.equal(
    report.removed.map(({ tag }) => tag),
    ['deep', 'one', 'two'],
  );
  // The layer of `two` is that of `main` too.
  assert.ok(
    report.freed_bytes >= 2 * layer && report.freed_bytes < 2 * layer + 8 * 8192,
    `freed ${report.freed_bytes}`,
  );
  assert.is(drawn(store), 'main-1(main)');
  assert.equal(readPages(store, 'main'), WHOLE);
});

branches('what is taken into use after the plan stays', async ({ store }) => {
  const made = planPrune(found(store), {}, 4e9);
  const held = store.hold('deep');
  const report = await prune(made, false, (tag) => void store.remove(tag));
  assert.equal(
    report.removed.map(({ tag }) => tag),
    ['two'],
  );
  assert.equal(
    report.kept.map(({ tag }) => tag),
    ['main', 'deep', 'one'],
  );
  held.close();
  assert.equal(readPages(store, 'deep'), WHOLE);
});

branches('pages that differ: those of the newer layer, and of another base all', ({ store }) => {
  const differ = (a: string, b: string) => {
    const chains = [a, b].map((tag) => store.hold(tag));
    const [x, y] = chains.map((chain) => native.sourceOpen(chain.layers.map(({ fd }) => fd))) as [number, number];
    try {
      return native.sourceDiffer(x, y);
    } finally {
      for (const source of [x, y]) native.sourceClose(source);
      for (const chain of chains) chain.close();
    }
  };
  assert.equal(differ('one', 'two'), { pages: 0, chunks: 0 });
  assert.equal(differ('main', 'one'), { pages: 1, chunks: 1 });
  putBase(store, 'other', { 0: 1, 1: 2, 2: 0, 16: 7, 400: 3 });
  assert.equal(differ('deep', 'other'), { pages: 2, chunks: 2 });
  // Written differently, the same image.
  putBase(store, 'equal', WHOLE);
  assert.equal(differ('deep', 'equal'), { pages: 0, chunks: 0 });
});

branches('ages', () => {
  assert.equal(['90', '90s', '15m', '12h', '7d', '2w'].map(parseAge), [90, 90, 900, 43_200, 604_800, 1_209_600]);
  for (const wrong of ['', 'd', '-1d', '1.5h', '7 d', '7y']) assert.is(parseAge(wrong), undefined, wrong);
});

branches.run();
