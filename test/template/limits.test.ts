/** Hot forks where something runs out, is killed from outside, or is busy on two processors. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { EvalReply } from '../../src/contract/guest.js';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { CLI, start } from '../support/cli.js';
import { BASE_TAG, eventually, makeWorld, qemusOf, sharedData, type World } from '../support/world.js';

const NUMPY = 'numpy.zeros(5).tolist()';
const ZEROS = '[0.0, 0.0, 0.0, 0.0, 0.0]';

const limits = suite<{ world: World }>('limits');

limits.before.each((context) => {
  context.world = makeWorld();
});
limits.after.each(({ world }) => world.close());

const inWorld = (world: World): World['env'] => ({ ...world.env, XDG_DATA_HOME: sharedData() });

limits('out of descriptors: refused before any child is made, with the way out', async ({ world }) => {
  const command = `ulimit -n 256; exec "$0" "$1" fork --tag ${BASE_TAG} -n 100`;
  const ended = await start('sh', ['-c', command, process.execPath, CLI], { env: inWorld(world) }).ended;
  assert.is(ended.code, 1);
  assert.match(ended.stderr, /descriptors, \d+ are left(.|\n)*`ulimit -n`/);
  assert.equal(qemusOf(world.root), []);
});

limits('out of memory: the children that do not fit are named, the others answer', async ({ world }) => {
  const args = ['fork', '--tag', BASE_TAG, '-n', '4', '--memory-limit-mib', '2', '--json', '--', 'echo', 'ok'];
  const ended = await start(process.execPath, [CLI, ...args], { env: inWorld(world) }).ended;
  assert.is.not(ended.code, 0, ended.stdout);
  assert.match(ended.stdout + ended.stderr, /SIGKILL|child \d/);
  assert.equal(qemusOf(world.root), []);
});

limits('the engine is killed in the middle of a fan-out: no QEMU is left a second later', async ({ world }) => {
  const running = start(process.execPath, [CLI, 'fork', '--tag', BASE_TAG, '-n', '200', '--settle-secs', '60'], {
    env: inWorld(world),
  });
  assert.ok(await eventually(() => qemusOf(world.root).length > 10, 20_000));
  running.kill('SIGKILL');
  await running.ended;
  assert.ok(await eventually(() => qemusOf(world.root).length === 0, 1000), `${qemusOf(world.root).length} are left`);
});

limits('20 fan-outs at once from two tags', async ({ world }) => {
  const copied = spawnSync('cp', [
    '-r',
    join(sharedData(), 'forkd/snapshots', BASE_TAG),
    join(world.snapshots, 'other'),
  ]);
  const linked = spawnSync('cp', [
    '-r',
    join(sharedData(), 'forkd/snapshots', BASE_TAG),
    join(world.snapshots, BASE_TAG),
  ]);
  assert.equal([copied.status, linked.status], [0, 0]);
  await inEngine(world.env, async (engine) => {
    const results = await Promise.all(
      Array.from({ length: 20 }, (_, i) =>
        engine.fork({ tag: i % 2 === 0 ? BASE_TAG : 'other', n: 3, firstEval: NUMPY }),
      ),
    );
    for (const { sandboxes, failures, firstResults } of results) {
      assert.equal(failures, []);
      assert.equal(
        sandboxes.map((s) => firstResults.get(s.birth.index)?.result),
        [ZEROS, ZEROS, ZEROS],
      );
    }
    assert.is(new Set(engine.sandboxes.map((s) => s.id)).size, 60);
  });
});

limits(
  'a call that was under way at a branch is answered in the copy too, and taken for no other call there',
  async ({ world }) => {
    await inEngine(inWorld(world), async (engine) => {
      const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
      const source = sandboxes[0] as Sandbox;
      const slow = engine.exec(source.id, ['sh', '-c', 'sleep 3; echo slow'], 30);
      await new Promise((resolve) => setTimeout(resolve, 300));
      const { template } = await engine.branch(source.id);
      const made = await engine.forkFrom(template, { n: 1 });
      const copy = made.sandboxes[0] as Sandbox;
      const own = await engine.exec(copy.id, ['sh', '-c', 'sleep 8; echo own'], 30);
      assert.is(own.stdout, 'own\n');
      assert.is((await slow).stdout, 'slow\n');
      await engine.retire(template);
    });
  },
);

limits('a guest with two processors, busy on both, is branched: source and branch go on rightly', async ({ world }) => {
  await inEngine(world.env, async (engine) => {
    await engine.snapshot({ tag: 'two', vcpus: 2, require: 'tcg' });
    const { sandboxes } = await engine.fork({ tag: 'two', n: 2 });
    const source = sandboxes[0] as Sandbox;
    const cpus = await engine.eval(source.id, 'import os; os.cpu_count()');
    assert.is(cpus.result, '2');
    const busy = 'import hashlib,sys; h=b"x"\nfor i in range(3000): h=hashlib.sha256(h).digest()\nprint(h.hex())';
    const running = [0, 1].map(() => engine.exec(source.id, ['python3', '-c', busy], 120));
    await new Promise((resolve) => setTimeout(resolve, 300));
    const { template } = await engine.branch(source.id);
    const made = await engine.forkFrom(template, { n: 2 });
    const more = await Promise.all(made.sandboxes.map((s) => engine.exec(s.id, ['python3', '-c', busy], 120)));
    const first = await Promise.all(running);
    const { createHash } = await import('node:crypto');
    let expected = Buffer.from('x');
    for (let i = 0; i < 3000; i++) expected = createHash('sha256').update(expected).digest();
    for (const reply of [...first, ...more]) assert.is(reply.stdout.trim(), expected.toString('hex'));
    const answers = await engine.callAll([source, ...made.sandboxes], () => ({ action: 'eval', code: NUMPY }), 60);
    assert.equal(
      answers.map((a) => (a.reply as EvalReply | undefined)?.result ?? a),
      [ZEROS, ZEROS, ZEROS],
    );
    await engine.retire(template);
  });
});

/** An engine with a world's directories: they are read from the environment when it is made. */
const inEngine = async (env: World['env'], use: (engine: Engine) => Promise<void>): Promise<void> => {
  const before = { ...process.env };
  Object.assign(process.env, env);
  const engine = new Engine({ resident: true });
  try {
    await use(engine);
  } finally {
    await engine.close();
    for (const name of Object.keys(env)) delete process.env[name];
    Object.assign(process.env, before);
  }
};

limits.run();
