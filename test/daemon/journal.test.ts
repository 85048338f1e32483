/** What the daemon remembers, when it is cut off at any byte. */
import { appendFileSync, copyFileSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { Journal } from '../../src/main/daemon/journal.js';
import { code } from '../support/layers.js';
import { makeWorld } from '../support/world.js';

const world = makeWorld();
const journal = suite('journal');
journal.after(() => world.close());

const path = join(world.root, 'state.json');

journal(
  'a change that was acknowledged is there again; an end that is not whole is cut off, at whatever byte',
  async () => {
    const first = new Journal(path);
    await first.put('workspaces', 'a', { n: 1 });
    await Promise.all([first.put('workspaces', 'b', { n: 2 }), first.put('snapshots', 'b', 'ünï\n')]);
    await first.remove('workspaces', 'a');
    const whole = readFileSync(`${path}.journal`);
    // What kill -9 leaves: the file as it was before the first change, and some of the journal. No close.
    for (let bytes = 0; bytes <= whole.length; bytes += 9) {
      const cut = join(world.root, `cut-${bytes % 7}.json`);
      copyFileSync(path, cut);
      writeFileSync(`${cut}.journal`, whole.subarray(0, bytes));
      const again = new Journal(cut);
      const names = again.entries('workspaces').map(([name]) => name);
      // A line that lacks only its newline is whole all the same.
      const lines = whole.subarray(0, bytes).filter((byte) => byte === 10).length + (whole[bytes] === 10 ? 1 : 0);
      assert.equal(names, [[], ['a'], ['a', 'b'], ['a', 'b'], ['b']][lines], `cut at ${bytes}`);
      await again.put('workspaces', 'after', bytes);
      await again.close();
      const last = new Journal(cut);
      assert.ok(last.entries('workspaces').some(([name, value]) => name === 'after' && value === bytes));
      await last.close();
    }
    await first.close();
    const closed = new Journal(path);
    assert.equal([closed.entries('workspaces'), closed.entries('snapshots')], [[['b', { n: 2 }]], [['b', 'ünï\n']]]);
    await closed.close();
  },
);

journal('two daemons, damage in the middle, and a file that is something else are refused', async () => {
  const mine = new Journal(path);
  assert.is(
    code(() => new Journal(path)),
    'DAEMON_REFUSED',
  );
  await mine.put('workspaces', 'x', 1);
  await mine.put('workspaces', 'y', 2);
  const good = readFileSync(`${path}.journal`, 'utf8');
  await mine.close();
  writeFileSync(`${path}.journal`, good.replace('"x"', '"z"'));
  assert.is(
    code(() => new Journal(path)),
    'DAEMON_REFUSED',
  );
  truncateSync(`${path}.journal`);
  for (const other of ['[]', 'null', '{', '1']) {
    writeFileSync(path, other);
    assert.is(
      code(() => new Journal(path)),
      'DAEMON_REFUSED',
      other,
    );
    assert.is(readFileSync(path, 'utf8'), other);
  }
  writeFileSync(path, '{}');
  appendFileSync(`${path}.journal`, 'rubbish');
  const mended = new Journal(path);
  assert.equal(mended.entries('workspaces'), []);
  await mended.close();
});

journal.run();
