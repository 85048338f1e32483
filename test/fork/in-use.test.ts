/** `fork` and `rmi` of one tag at once, as commands. */
import { cpSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { living } from '../../src/main/sandbox/registry.js';
import { forkd, startCli } from '../support/cli.js';
import { suite } from '../support/suite.js';
import { BASE_TAG, makeWorld, qemusOf, type World } from '../support/world.js';

const inUse = suite<{ world: World }>('a tag in use');

inUse.before((context) => {
  context.world = makeWorld(true);
});
inUse.after(({ world }) => world.close());

const forking = (tag: string, n = '2') => ['fork', '--tag', tag, '-n', n, '--', 'echo', 'whole {index}'];

inUse(
  'while a fork runs, rmi names it and removes nothing; --force removes, and the children live on',
  async (context) => {
    const { env, snapshots } = context.world;
    const fork = startCli(['fork', '--tag', BASE_TAG, '-n', '2', '--settle-secs', '60'], { env });
    await fork.says('forkd exec --target');
    const refused = await forkd(['rmi', BASE_TAG], { env });
    assert.is(refused.code, 1);
    assert.match(
      refused.stdout + refused.stderr,
      new RegExp(`in use by process ${fork.pid} \\(forkd fork --tag ${BASE_TAG}`),
    );
    assert.ok(readdirSync(snapshots).includes(BASE_TAG));

    cpSync(join(snapshots, BASE_TAG), join(snapshots, 'other'), { recursive: true });
    const forced = await forkd(['rmi', '--force', BASE_TAG], { env });
    assert.is(forced.code, 0, forced.stdout + forced.stderr);
    const [one] = living(join(env.XDG_DATA_HOME, 'forkd/sandboxes'));
    const alive = await forkd(['exec', '--target', one?.id ?? '', '--', 'cat', '/etc/hostname'], { env });
    assert.is(alive.code, 0, alive.stderr);
    fork.kill('SIGINT');
    assert.is((await fork.ended).code, 130);
  },
);

inUse('started at once, each comes through or is told why, and what comes through is whole', async ({ world }) => {
  const { env, snapshots } = world;
  for (const delay of [0, 250, 500]) {
    cpSync(join(snapshots, 'other'), join(snapshots, 'raced'), { recursive: true });
    const fork = forkd(forking('raced'), { env });
    await new Promise((resolve) => setTimeout(resolve, delay));
    const [forked, removed] = await Promise.all([fork, forkd(['rmi', 'raced'], { env })]);
    const told = `${delay} ms: ${forked.stderr} ${removed.stdout}${removed.stderr}`;
    if (forked.code === 0) assert.match(forked.stdout, /whole 1[\s\S]*whole 2|whole 2[\s\S]*whole 1/);
    else assert.match(forked.stderr, /'raced' (not found|is being written or removed)/, told);
    if (removed.code !== 0) assert.match(removed.stdout, /in use by process \d+/, told);
    assert.ok(forked.code === 0 || removed.code === 0, told);
    assert.is(readdirSync(snapshots).includes('raced'), removed.code !== 0);
    if (removed.code !== 0) assert.is((await forkd(['rmi', 'raced'], { env })).code, 0);
  }
  assert.equal([readdirSync(env.TMPDIR), qemusOf(world.root)], [[], []]);
});

inUse.run();
