/** A running sandbox written out as a snapshot, while it goes on. Real VMs; the second half in another engine, from disk alone. */
import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { pack } from '../../src/main/hub/pack.js';
import { unpack } from '../../src/main/hub/unpack.js';
import { Engine } from '../../src/main/engine.js';
import { BASE_TAG, makeWorld, type World } from '../support/world.js';

const world: World = makeWorld(true);
Object.assign(process.env, world.env);

const branchTag = suite<{ engine: Engine; id: string }>('branch into a tag');

branchTag.before(async (context) => {
  context.engine = new Engine({ resident: true });
  const { sandboxes } = await context.engine.fork({ tag: BASE_TAG, n: 1 });
  context.id = sandboxes[0]?.id as string;
});
branchTag.after(async ({ engine }) => {
  await engine.close();
  world.close();
});

const keep = (engine: Engine, id: string, name: string, value: string) =>
  engine.eval(id, `import builtins, os\nbuiltins.${name} = ${value}\nopen('/tmp/${name}', 'w').write(str(${value}))`);
const kept = async (engine: Engine, id: string, name: string): Promise<string> =>
  (await engine.eval(id, `(${name}, open('/tmp/${name}').read())`)).result ?? '';
const codeOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'no error',
    (error: { code: string }) => error.code,
  );

branchTag(
  'children fork from it at once, and from disk when it is written; the source goes on',
  async ({ engine, id }) => {
    await keep(engine, id, 'state', "'one'");
    // 8 MiB of noise, so that the difference has a size.
    await engine.eval(id, 'import builtins, os\nbuiltins.noise = os.urandom(8 << 20)');
    const slow = engine.eval(id, '__import__("time").sleep(0.3) or 41 + 1');
    const branch = await engine.branchInto(id, { tag: 'one' });
    const early = await engine.fork({ tag: 'one', n: 2 });
    assert.equal([early.mechanism, early.failures], ['hot-fork', []]);
    for (const child of early.sandboxes) assert.is(await kept(engine, child.id, 'state'), "('one', 'one')");
    assert.is((await slow).result, '42');
    const { manifest, dir, dirty_bytes, written_bytes } = await branch.written;
    assert.equal([manifest.parent_tag, manifest.branched_from], [BASE_TAG, id]);
    assert.ok(dirty_bytes > 8 << 20, `dirty ${dirty_bytes}`);
    assert.ok(written_bytes <= dirty_bytes * 1.05 + (1 << 20), `wrote ${written_bytes} for ${dirty_bytes}`);
    assert.is(statSync(join(dir, 'memory.layer')).size, written_bytes);
    const late = await engine.fork({ tag: 'one', n: 1 });
    assert.is(late.mechanism, 'hot-fork');
    assert.is(await kept(engine, late.sandboxes[0]?.id as string, 'state'), "('one', 'one')");
    await engine.kill([...early.sandboxes, ...late.sandboxes]);
  },
);

branchTag('another process restores it from disk, hot and cold, each child with an identity of its own', async () => {
  const other = new Engine({ resident: true });
  try {
    for (const cold of [false, true]) {
      const { sandboxes, failures, mechanism } = await other.fork({ tag: 'one', n: 2, cold });
      assert.equal([mechanism, failures], [cold ? 'cold-restore' : 'hot-fork', []]);
      for (const child of sandboxes) {
        assert.is(await kept(other, child.id, 'state'), "('one', 'one')");
        assert.is((await other.eval(child.id, 'len(noise)')).result, String(8 << 20));
      }
      const drawn = await Promise.all(sandboxes.map(({ id }) => other.eval(id, "__import__('os').urandom(8).hex()")));
      assert.is(new Set(drawn.map(({ result }) => result)).size, 2);
    }
  } finally {
    await other.close();
  }
});

branchTag('a branch of a branch, from disk: a chain of three', async () => {
  const other = new Engine({ resident: true });
  try {
    const { sandboxes } = await other.fork({ tag: 'one', n: 1 });
    const child = sandboxes[0]?.id as string;
    await keep(other, child, 'more', "'two'");
    const { manifest, dirty_bytes } = await (await other.branchInto(child, { tag: 'two' })).written;
    assert.is(manifest.parent_tag, 'one');
    // The noise came with the parent: it is not written again.
    assert.ok(dirty_bytes < 8 << 20, `dirty ${dirty_bytes}`);
    assert.equal(
      other.store.chain('two').map(({ tag }) => tag),
      [BASE_TAG, 'one', 'two'],
    );
  } finally {
    await other.close();
  }
  const last = new Engine();
  try {
    const { sandboxes } = await last.fork({ tag: 'two', n: 1, cold: true });
    const id = sandboxes[0]?.id as string;
    assert.is(await kept(last, id, 'state'), "('one', 'one')");
    assert.is(await kept(last, id, 'more'), "('two', 'two')");
  } finally {
    await last.close();
  }
});

branchTag('packed as other tools have it, and unpacked elsewhere, the chain forks as it did', async ({ engine }) => {
  const path = join(world.root, 'two.tar.zst');
  const packed = await pack(engine.store, { tag: 'two', out: path, version: 2 });
  const other = new Engine({ snapshotRoot: join(world.root, 'elsewhere') });
  try {
    assert.equal((await unpack(other.store, { path })).made, [BASE_TAG, 'one', 'two']);
    for (const file of [path, packed.sidecar ?? '']) rmSync(file);
    for (const cold of [false, true]) {
      const { sandboxes, failures } = await other.fork({ tag: 'two', n: 2, cold });
      assert.equal(failures, []);
      for (const { id } of sandboxes) {
        assert.is(await kept(other, id, 'state'), "('one', 'one')");
        assert.is(await kept(other, id, 'more'), "('two', 'two')");
        assert.is((await other.eval(id, 'len(noise)')).result, String(8 << 20));
      }
    }
  } finally {
    await other.close();
  }
});

branchTag(
  'a tag that is there is refused before anything is copied, unless it may be replaced',
  async ({ engine, id }) => {
    assert.is(await codeOf(engine.branchInto(id, { tag: BASE_TAG })), 'SNAPSHOT_EXISTS');
    assert.is(await codeOf(engine.branchInto(id, { tag: '../x' })), 'TAG_INVALID');
    assert.is(await codeOf(engine.branchInto('sb-0-0000', { tag: 'three' })), 'SANDBOX_NOT_FOUND');
    await (await engine.branchInto(id, { tag: 'three' })).written;
    assert.is(await codeOf(engine.branchInto(id, { tag: 'three' })), 'SNAPSHOT_EXISTS');
    await keep(engine, id, 'state', "'newer'");
    await (await engine.branchInto(id, { tag: 'three', force: true })).written;
    const { sandboxes } = await engine.fork({ tag: 'three', n: 1 });
    assert.is(await kept(engine, sandboxes[0]?.id as string, 'state'), "('newer', 'newer')");
    await engine.kill(sandboxes);
  },
);

branchTag('two branches into one tag at once: one wins, the other is told', async ({ engine, id }) => {
  const outcomes = await Promise.all(
    [1, 2].map(() => codeOf(engine.branchInto(id, { tag: 'four' }).then((b) => b.written))),
  );
  assert.equal(outcomes.sort(), ['SNAPSHOT_BUSY', 'no error']);
});

branchTag.run();
