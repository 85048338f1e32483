import { cpSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { forkd } from '../support/cli.js';
import { BASE_TAG, makeWorld, qemusOf, type World } from '../support/world.js';

interface Answer {
  ok: boolean;
  answer: string;
  random: string;
  numpy_random: string;
  hostname: string;
}

const test = suite<{ world: World }>('forkd quickstart');

test.before.each((context) => {
  context.world = makeWorld();
});
test.after.each(({ world }) => world.close());

test('a count that cannot be is refused before anything is built', async ({ world }) => {
  for (const n of ['0', '4001', 'x']) {
    const { code, stderr } = await forkd(['quickstart', '-n', n], { env: world.env });
    assert.is(code, 2, stderr);
  }
  assert.equal(readdirSync(world.snapshots), []);
});

test('without QEMU it names the command, and without a yes changes nothing', async ({ world }) => {
  const bin = join(world.root, 'bin');
  mkdirSync(bin);
  const { code, stdout, stderr } = await forkd(['quickstart'], { env: { ...world.env, PATH: bin } });
  assert.is(code, 1);
  assert.is(stdout, '');
  assert.match(stderr, 'apt-get install -y --no-install-recommends qemu-system-x86');
  assert.match(stderr, process.getuid?.() === 0 ? 'nothing was changed' : 'Run as root');
  assert.equal(readdirSync(world.snapshots), []);
});

test('a host that cannot be mended is refused with the reason', async ({ world }) => {
  const { code, stderr } = await forkd(['quickstart', '--yes'], {
    env: { ...world.env, TMPDIR: join(world.root, 'missing') },
  });
  assert.is(code, 1);
  assert.match(stderr, /Error: this host cannot run forkd: temp dir: .*missing does not exist/);
});

test('with the snapshot there, every child answers rightly and says what no other says', async () => {
  const world = makeWorld(true);
  try {
    cpSync(join(world.snapshots, BASE_TAG), join(world.snapshots, 'quickstart'), { recursive: true });
    const { code, stdout, stderr } = await forkd(['quickstart', '-n', '3', '--json'], { env: world.env });
    assert.is(code, 0, stderr);
    const report = JSON.parse(stdout) as { ok: number; n: number; isolation: string; children: Answer[] };
    assert.equal([report.ok, report.n], [3, 3]);
    assert.ok(['kvm', 'tcg'].includes(report.isolation));
    assert.equal(
      report.children.map(({ answer }) => answer),
      ['500500', '2001000', '4501500'],
    );
    for (const key of ['random', 'numpy_random', 'hostname'] as const) {
      assert.is(new Set(report.children.map((child) => child[key])).size, 3, key);
    }
    assert.equal(qemusOf(world.root), []);
    assert.equal(readdirSync(world.env.TMPDIR), []);
    assert.ok(existsSync(join(world.snapshots, 'quickstart/snapshot.json')));
  } finally {
    world.close();
  }
});

test('another isolation than the snapshot has is never forked from it', async () => {
  const world = makeWorld(true);
  try {
    const isolation = JSON.parse((await forkd(['images', '--json'], { env: world.env })).stdout)[0].isolation as string;
    if (isolation === 'kvm') return;
    cpSync(join(world.snapshots, BASE_TAG), join(world.snapshots, 'quickstart'), { recursive: true });
    const { code, stderr } = await forkd(['quickstart', '-n', '1', '--require', 'kvm'], { env: world.env });
    assert.is(code, 1);
    assert.match(stderr, 'KVM was required');
    assert.ok(existsSync(join(world.snapshots, 'quickstart/snapshot.json')), 'the old snapshot was given up');
  } finally {
    world.close();
  }
});

test.run();
