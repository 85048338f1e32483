/** A snapshot on top of another, made by a command that ran in a child. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { words } from '../../src/cli/words.js';
import { forkd, type Running, startCli } from '../support/cli.js';
import { BASE_TAG, eventually, makeWorld, qemusOf, type World } from '../support/world.js';

const diff = suite<{ world: World }>('snapshot-diff');

diff.before((context) => {
  context.world = makeWorld(true);
});
diff.after(({ world }) => world.close());

const make = (world: World, tag: string, exec: string, ...more: string[]) =>
  forkd(['snapshot-diff', '--from', BASE_TAG, '--tag', tag, '--exec', exec, ...more], { env: world.env });

diff('words', () => {
  assert.equal(words(`pip  install 'a b' "c'd" x""y ''`), ['pip', 'install', 'a b', "c'd", 'xy', '']);
  assert.is(words(`a 'b`), undefined);
  assert.equal(words('  '), []);
});

diff('what the command changed is in the new tag, and only there', async ({ world }) => {
  const made = await make(world, 'more', `sh -c 'echo "two words" > /root/note'`);
  assert.is(made.code, 0, made.stderr);
  assert.match(made.stdout, /^tag: +more$/m);
  assert.match(made.stdout, new RegExp(`^parent_tag: +${BASE_TAG}$`, 'm'));
  assert.match(made.stdout, /^diff_physical_bytes: +\d+$/m);
  const manifest = JSON.parse(readFileSync(join(world.snapshots, 'more/snapshot.json'), 'utf8'));
  assert.is(manifest.parent_tag, BASE_TAG);
  const cat = (tag: string) => forkd(['fork', '--tag', tag, '-n', '1', '--', 'cat', '/root/note'], { env: world.env });
  const [more, base] = [await cat('more'), await cat(BASE_TAG)];
  assert.is(more.stdout, '[1] two words\n', more.stderr);
  assert.is(base.code, 1);
  const again = await make(world, 'more', 'true');
  assert.is(again.code, 1);
  assert.match(again.stderr, /'more' already exists/);
});

diff('a command that fails, and a command line that is none, leave nothing', async ({ world }) => {
  const failing = await make(world, 'bad', `sh -c 'echo out; echo err >&2; exit 3'`);
  assert.is(failing.code, 1);
  assert.match(failing.stderr, /exit code 3[\s\S]*out[\s\S]*err/);
  for (const exec of ["sh -c 'x", '  ']) assert.is((await make(world, 'bad', exec)).code, 2);
  assert.is((await make(world, BASE_TAG, 'true')).code, 2);
  assert.equal(
    readdirSync(world.snapshots).filter((name) => name.startsWith('bad') || name.startsWith('.staging')),
    [],
  );
  assert.equal(readdirSync(world.env.TMPDIR), []);
  assert.equal(qemusOf(world.root), []);
});

diff('interrupted, and killed, while its command runs: no tag, and cleanup takes the rest', async ({ world }) => {
  const runs = [0, 1].map((n) => {
    const args = ['snapshot-diff', '--from', BASE_TAG, '--tag', `cut${n}`, '--exec', 'sleep 600'];
    return startCli(args, { env: world.env });
  }) as [Running, Running];
  await Promise.all(runs.map((run) => run.says('==>')));
  assert.ok(await eventually(() => qemusOf(world.root).length >= 2, 60_000));
  runs[0].kill('SIGINT');
  runs[1].kill('SIGKILL');
  assert.is((await runs[0].ended).code, 130);
  assert.is((await runs[1].ended).signal, 'SIGKILL');
  assert.ok(await eventually(() => qemusOf(world.root).length === 0), 'orphans');
  assert.is((await forkd(['cleanup', '--yes'], { env: world.env })).code, 0);
  assert.equal(
    readdirSync(world.snapshots).filter((name) => name.startsWith('cut') || name.startsWith('.staging')),
    [],
  );
  assert.equal(readdirSync(world.env.TMPDIR), []);
});

diff.run();
