/** Sandboxes that a `forkd fork` keeps, promoted by another command. */
import { readdirSync, watch } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
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
  'Ctrl-C while one is promoted: it is done, no other is begun, and nothing is left',
  async ({ world: { env, root, snapshots } }) => {
    const fork = startCli(['fork', '--tag', BASE_TAG, '-n', '2', '--settle-secs', '60'], { env });
    const id = ID.exec(await fork.says(ID))?.[1] as string;
    // So that it takes a while.
    const fill = ['sh', '-c', 'head -c 100M /dev/zero | tr "\\0" x > /root/much'];
    assert.is((await forkd(['exec', '--target', id, '--', ...fill], { env })).code, 0);
    // Whoever has an order, and has begun to tell it.
    const dir = readdirSync(env.TMPDIR).find((name) => name.startsWith('forkd-engine')) ?? '';
    const slow = connect(join(env.TMPDIR, dir, 'desk.sock'));
    const silent = connect(join(env.TMPDIR, dir, 'desk.sock')).on('error', () => undefined);
    slow.write(`{"what": "promote", "id": "${id}", `);
    const watching = watch(snapshots);
    const begun = new Promise<void>((resolve) =>
      watching.on('change', (_, name) => String(name).startsWith('.staging-promote') && resolve()),
    );
    const under = forkd(['promote', id, '--as', 'at-the-end'], { env });
    await begun;
    watching.close();
    fork.kill('SIGINT');
    const heard = new Promise<string>((resolve) => {
      let text = '';
      slow.on('data', (data) => (text += data)).on('error', () => undefined);
      slow.on('close', () => resolve(text));
    });
    setTimeout(() => slow.end('"as": "never"}\n'), 20);
    assert.is((await under).code, 0, (await under).stderr);
    const { code, stderr } = await fork.ended;
    assert.is(code, 130, stderr);
    assert.match(await heard, /^$|SANDBOX_NOT_FOUND/);
    silent.destroy();
    const tags = readdirSync(snapshots);
    assert.ok(tags.includes('at-the-end') && !tags.includes('never'), tags.join());
    assert.equal(
      tags.filter((name) => /promote|staging|trash/.test(name)),
      [],
    );
    assert.equal([readdirSync(env.TMPDIR), qemusOf(root)], [[], []]);
    const again = await forkd(['fork', '--tag', 'at-the-end', '-n', '1', '--', 'wc', '-c', '/root/much'], { env });
    assert.match(again.stdout, /104857600/, again.stderr);
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
