/** Chains that are not what they should be: each refused by name. And snapshot.json with anything in it. */
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { limits } from '../../src/contract/limits.js';
import type { SnapshotManifest } from '../../src/contract/snapshot.js';
import { resolveChain } from '../../src/main/store/chain.js';
import { Store } from '../../src/main/store/store.js';
import { code, putBase, putDiff, readPages, Subject } from '../support/layers.js';
import { manifest } from '../support/manifest.js';

interface Context {
  root: string;
  store: Store;
  subject: Subject;
}

const chain = suite<Context>('chains');

chain.before(async (context) => {
  context.subject = await Subject.start();
  await context.subject.write({ 16: 7 });
});
chain.before.each((context) => {
  context.root = mkdtempSync(join(tmpdir(), 'chain-'));
  context.store = new Store(join(context.root, 'snapshots'));
});
chain.after.each(({ root }) => rmSync(root, { recursive: true, force: true }));
chain.after(({ subject }) => subject.end());

/** What opening a tag for use throws, and what the list says of it. */
const refused = (store: Store, tag: string): string => {
  const thrown = code(() => store.hold(tag).close());
  const problem = store.list().find((one) => one.tag === tag)?.problem;
  assert.is(problem === undefined, thrown === 'no error', `${tag}: ${problem}`);
  return thrown;
};

const change = (store: Store, tag: string, keys: Record<string, unknown>): void => {
  const path = join(store.dir(tag), 'snapshot.json');
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), ...keys }));
};

chain('a parent that is missing, and one that is another than it was', ({ store, subject }) => {
  putBase(store, 'base', { 0: 1 });
  putDiff(store, 'child', 'base', subject);
  assert.is(refused(store, 'child'), 'no error');
  renameSync(store.dir('base'), join(store.root, '.elsewhere'));
  assert.is(refused(store, 'child'), 'PARENT_MISSING');
  putBase(store, 'base', { 0: 2 });
  assert.is(refused(store, 'child'), 'PARENT_ALTERED');
  // Nothing is made of this base: it may be removed; and with the old one back all is as it was.
  assert.equal(store.remove('base'), ['base']);
  renameSync(join(store.root, '.elsewhere'), store.dir('base'));
  assert.equal(readPages(store, 'child'), { 0: 1, 16: 7 });
});

chain('a parent that has another name by now is found by its root, and is as safe as before', ({ store, subject }) => {
  putBase(store, 'base', { 0: 1 });
  putDiff(store, 'child', 'base', subject);
  renameSync(store.dir('base'), store.dir('former'));
  putBase(store, 'base', { 0: 2 });
  assert.equal(readPages(store, 'child'), { 0: 1, 16: 7 });
  assert.equal([store.dependents('base'), store.dependents('former')], [[], ['child']]);
  assert.is(
    code(() => store.remove('former')),
    'SNAPSHOT_HAS_DEPENDENTS',
  );
  assert.equal(
    store
      .list()
      .map(({ tag, parent_tag, problem }) => [tag, parent_tag, problem])
      .sort(),
    [
      ['base', undefined, undefined],
      ['child', 'former', undefined],
      ['former', undefined, undefined],
    ],
  );
});

chain('a parent that is damaged is named by the child', ({ store, subject }) => {
  putBase(store, 'base', { 0: 1 });
  putDiff(store, 'child', 'base', subject);
  const layer = join(store.dir('base'), 'memory.layer');
  writeFileSync(layer, readFileSync(layer).subarray(0, 5000));
  assert.throws(() => store.hold('child'), /'base' is damaged: .*base\/memory\.layer/);
});

chain('a snapshot.json that names another root, parent or size than the layer has', ({ store, subject }) => {
  putBase(store, 'base', { 0: 1 });
  putDiff(store, 'child', 'base', subject);
  const good = readFileSync(join(store.dir('child'), 'snapshot.json'), 'utf8');
  const { memory_root, parent_content_hash } = JSON.parse(good) as Record<string, string>;
  const flipped = (root = ''): string => `${root[0] === '0' ? '1' : '0'}${root.slice(1)}`;
  for (const [keys, expected] of [
    [{ memory_root: flipped(memory_root) }, 'SNAPSHOT_CORRUPT'],
    [{ parent_content_hash: flipped(parent_content_hash) }, 'PARENT_ALTERED'],
    [{ parent_tag: undefined, parent_content_hash: undefined }, 'SNAPSHOT_CORRUPT'],
    [{ memory_mib: 256, memory_bytes: 256 * 2 ** 20 }, 'SNAPSHOT_CORRUPT'],
    [{ vmstate_bytes: 13 }, 'SNAPSHOT_CORRUPT'],
    [{ parent_tag: 'nobody', parent_content_hash: flipped(parent_content_hash) }, 'PARENT_MISSING'],
  ] as const) {
    change(store, 'child', keys);
    assert.is(
      code(() => store.hold('child').close()),
      expected,
      JSON.stringify(keys),
    );
    writeFileSync(join(store.dir('child'), 'snapshot.json'), good);
  }
});

const link = (tag: string, parent?: string): { manifest: SnapshotManifest } => ({
  manifest: manifest({
    tag,
    ...(parent === undefined ? {} : { parent_tag: parent, parent_content_hash: 'ab'.repeat(32) }),
  }),
});

chain('cycles, of one and of more, and chains that are too deep', () => {
  const loop: Record<string, string> = { a: 'b', b: 'c', c: 'a', self: 'self', tail: 'a' };
  for (const [tag, cycle] of [
    ['a', 'a -> b -> c -> a'],
    ['tail', 'tail -> a -> b -> c -> a'],
    ['self', 'self -> self'],
  ] as const) {
    assert.throws(
      () => resolveChain(tag, (name) => link(name, loop[name])),
      (e: Error) => e.message.includes(cycle),
    );
  }
  const numbered = (name: string) => (name === '0' ? link(name) : link(name, String(Number(name) - 1)));
  assert.is(resolveChain(String(limits.chainDepthMax), numbered).length, limits.chainDepthMax + 1);
  assert.is(
    code(() => resolveChain(String(limits.chainDepthMax + 1), numbered)),
    'CHAIN_TOO_DEEP',
  );
});

chain('a cycle on disk is refused, and can be removed', ({ store, subject }) => {
  putBase(store, 'base', { 0: 1 });
  putDiff(store, 'child', 'base', subject);
  const { memory_root } = store.manifest('child');
  change(store, 'base', { parent_tag: 'child', parent_content_hash: memory_root });
  assert.is(refused(store, 'child'), 'CHAIN_CYCLE');
  assert.is(
    code(() => store.remove('base')),
    'SNAPSHOT_HAS_DEPENDENTS',
  );
  assert.equal(store.remove('base', { cascade: true }).sort(), ['base', 'child']);
});

chain('a tag that something is made of is neither removed nor replaced; cascade takes leaves first', (context) => {
  const { store, subject } = context;
  putBase(store, 'base', { 0: 1 });
  putDiff(store, 'child', 'base', subject);
  putDiff(store, 'leaf', 'child', subject);
  for (const act of [() => store.remove('base'), () => putBase(store, 'base', { 0: 9 }, {}, true)]) {
    assert.throws(act, /child/);
    assert.is(code(act), 'SNAPSHOT_HAS_DEPENDENTS');
  }
  assert.equal(store.dependents('base'), ['child']);
  // One lock of the three is enough to keep all of them.
  const lock = store.lock('leaf');
  assert.is(
    code(() => store.remove('base', { cascade: true })),
    'SNAPSHOT_BUSY',
  );
  lock.release();
  assert.equal(store.tags().sort(), ['base', 'child', 'leaf']);
  assert.equal(readPages(store, 'leaf'), { 0: 1, 16: 7 });
  assert.equal(store.remove('base', { cascade: true }), ['leaf', 'child', 'base']);
  assert.equal([store.tags(), store.abandoned()], [[], []]);
});

chain('a diff whose parent has gone, or is another by now, does not come to be', ({ store, subject }) => {
  for (const [meanwhile, expected] of [
    [() => store.remove('base', { force: true }), 'PARENT_MISSING'],
    [() => putBase(store, 'base', { 0: 3 }, {}, true), 'PARENT_ALTERED'],
  ] as const) {
    if (store.exists('base')) store.remove('base');
    putBase(store, 'base', { 0: 1 });
    // Between the writing of the layer and its publication.
    const late = Object.create(store) as Store;
    late.stage = (tag) => {
      const staging = store.stage(tag);
      const publish = staging.publish.bind(staging);
      staging.publish = (m, replace) => {
        meanwhile();
        publish(m, replace);
      };
      return staging;
    };
    assert.is(
      code(() => putDiff(late, 'child', 'base', subject)),
      expected,
    );
    assert.not(store.exists('child'));
    assert.equal(store.abandoned(), []);
  }
});

/** Reproducible. */
const random = (seed: number) => {
  let state = seed;
  return (limit: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
};

const VALUES = [null, true, 0, -1, 1e308, 2 ** 53, '', '../../etc', '\0', 'x'.repeat(70_000), [], {}, [[[]]], 'base'];

chain('snapshot.json with anything in it: an error with a name, or what can be used; never a crash', (context) => {
  const { store, subject } = context;
  putBase(store, 'base', { 0: 1 });
  putDiff(store, 'child', 'base', subject);
  const path = join(store.dir('child'), 'snapshot.json');
  const good = readFileSync(path);
  const below = random(11);
  const mutations: (() => Buffer | string)[] = [
    () => {
      const bytes = Buffer.from(good);
      for (let n = 1 + below(3); n > 0; n--) bytes[below(bytes.length)] = below(256);
      return bytes;
    },
    () => good.subarray(0, below(good.length)),
    () => Buffer.concat([good.subarray(0, below(good.length)), good.subarray(below(good.length))]),
    () => {
      const value = JSON.parse(good.toString()) as Record<string, unknown>;
      const keys = Object.keys(value);
      for (let n = 1 + below(3); n > 0; n--) value[keys[below(keys.length)] as string] = VALUES[below(VALUES.length)];
      return JSON.stringify(value);
    },
    () => {
      const value = JSON.parse(good.toString()) as Record<string, Record<string, unknown>>;
      const inner = ['vmm', 'kernel', 'initrd', 'rootfs_digest'][below(4)] as string;
      const keys = Object.keys(value[inner] ?? {});
      (value[inner] ?? {})[keys[below(keys.length)] as string] = VALUES[below(VALUES.length)];
      return JSON.stringify(value);
    },
  ];
  const outcomes = new Map<string, number>();
  for (let round = 0; round < 1500; round++) {
    writeFileSync(path, (mutations[round % mutations.length] as () => Buffer | string)());
    const outcome = code(() => store.hold('child').close());
    assert.ok(/^(no error|SNAPSHOT_|PARENT_|CHAIN_|TAG_INVALID)/.test(outcome), `round ${round}: ${outcome}`);
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    if (round % 50 === 0) assert.is(store.list().length, 2);
  }
  // It has met what it is for.
  for (const met of ['no error', 'SNAPSHOT_CORRUPT', 'SNAPSHOT_INCOMPATIBLE']) {
    assert.ok((outcomes.get(met) ?? 0) > 0, `${met}: ${JSON.stringify([...outcomes])}`);
  }
  assert.equal(readPages(store, 'base'), { 0: 1 });
});

chain.run();
