/** Sandboxes that a `forkd fork` keeps, promoted by another command. */
import { readdirSync } from 'node:fs';
import * as assert from 'uvu/assert';
import { forkd, startCli } from '../support/cli.js';
import { suite } from '../support/suite.js';
import { BASE_TAG, makeWorld, qemusOf, type World } from '../support/world.js';

const promote = suite<{ world: World }>('promote a child of a fork');

promote.before((context) => {
  context.world = makeWorld(true);
});
promote.after(({ world }) => world.close());

const ID = /forkd exec --target (sb-[0-9a-f]+-[0-9a-f]+)/;

promote(
  'a tag means what the child is now, and the child runs on; also a single one, and one whose fork is told to end',
  async ({ world: { env, root, snapshots } }) => {
    const fork = startCli(['fork', '--tag', BASE_TAG, '-n', '1', '--live-fork', '--settle-secs', '60'], { env });
    const id = ID.exec(await fork.says(ID))?.[1] as string;
    const inChild = (script: string) => forkd(['exec', '--target', id, '--', 'sh', '-c', script], { env });
    assert.is((await inChild('echo mine > /root/who')).code, 0);
    const made = await forkd(['promote', id, '--as', 'best'], { env });
    assert.match(made.stdout, new RegExp(`tag: +best\n.*\npromoted_from: +${id}\n$`), made.stderr);
    assert.is((await inChild('cat /root/who; echo later > /root/who')).stdout, 'mine\n');
    const bad = await forkd(['promote', id, '--as', '../x'], { env });
    assert.match(bad.stderr, /^Error: .*'\.\.\/x'/m);
    assert.match((await forkd(['fork', '--tag', 'best', '-n', '1', '--', 'cat', '/root/who'], { env })).stdout, /mine/);

    const again = await forkd(['promote', id, '--as', BASE_TAG], { env });
    assert.match(again.stdout, /previous: +base-1\n/, again.stderr);
    // What is under way when it is told to end comes to its end, or has not begun.
    const late = forkd(['promote', id, '--as', 'late'], { env });
    fork.kill('SIGINT');
    assert.is((await fork.ended).code, 130);
    assert.is((await late).code === 0, readdirSync(snapshots).includes('late'), (await late).stderr);
    assert.equal(
      readdirSync(snapshots).filter((name) => /promote/.test(name)),
      [],
    );
    assert.match((await forkd(['promote', id, '--as', 'best'], { env })).stderr, /Error: sandbox '.*' not found/);
    assert.equal([readdirSync(env.TMPDIR), qemusOf(root)], [[], []]);
  },
);

promote(
  'one that was restored by a QEMU of its own is refused, and how it could be said',
  async ({ world: { env } }) => {
    const fork = startCli(['fork', '--tag', BASE_TAG, '-n', '1', '--settle-secs', '60'], { env });
    const id = ID.exec(await fork.says(ID))?.[1] as string;
    const refused = await forkd(['promote', id, '--as', 'no'], { env });
    assert.match(refused.stderr, /cannot be branched: it was restored cold(.|\n)*--live-fork/);
    fork.kill('SIGINT');
    await fork.ended;
  },
);

promote.run();
