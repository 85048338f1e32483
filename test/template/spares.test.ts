/** Children that were forked ahead of their request: as right, unique and apart as any, and nothing of them is left over. Real VMs. */
import { existsSync, readdirSync } from 'node:fs';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { EvalReply, PingReply } from '../../src/contract/guest.js';
import { Engine } from '../../src/main/engine.js';
import { end } from '../../src/main/sandbox/end.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import type { Spares } from '../../src/main/template/spares.js';
import type { Template } from '../../src/main/template/template.js';
import { BASE_TAG, makeWorld, qemusOf, type World } from '../support/world.js';

const world: World = makeWorld(true);
Object.assign(process.env, world.env);

interface Context {
  engine: Engine;
  template: Template;
  kept: Spares;
}

const spares = suite<Context>('spares');

spares.before(async (context) => {
  context.engine = new Engine({ resident: true, spares: 2 });
  context.template = await context.engine.warm(BASE_TAG);
  context.kept = context.template.spares as Spares;
});
spares.before.each(({ kept }) => kept.fill());
spares.after.each(({ engine }) => engine.kill(engine.sandboxes));
spares.after(async ({ engine }) => {
  await engine.close();
  world.close();
});

const fork = async (engine: Engine, n: number, more: { memoryLimitMib?: number } = {}) => {
  const result = await engine.fork({ tag: BASE_TAG, n, ...more });
  assert.equal(result.failures, []);
  assert.is(result.sandboxes.length, n);
  return result;
};

const DRAWN =
  "import os, random, uuid, time, numpy\n[os.urandom(8).hex(), random.random(), numpy.random.rand(), str(uuid.uuid4()), str(uuid.uuid1()), os.uname().nodename, open('/etc/machine-id').read(), open('/proc/sys/kernel/random/boot_id').read()]";

spares('two are taken and the rest is forked; all differ in everything that must differ', async ({ engine, kept }) => {
  assert.is(kept.size, 2);
  const { sandboxes, forkUs } = await fork(engine, 4);
  assert.is(forkUs.length, 2);
  const replies = (await Promise.all(sandboxes.map(({ id }) => engine.eval(id, DRAWN)))) as EvalReply[];
  const rows = replies.map(({ result = '' }) => result.slice(1, -1).split(', '));
  rows[0]?.forEach((_, column) => {
    assert.is(new Set(rows.map((row) => row[column])).size, 4, `column ${column} of ${JSON.stringify(rows)}`);
  });
  for (const [i, { id, birth, receipt }] of sandboxes.entries()) {
    assert.is(birth.hostname, id);
    assert.ok(rows[i]?.includes(`'${id}'`), `${id} in ${rows[i]}`);
    assert.equal(receipt?.failed, {});
    for (const step of ['kernel_rng', 'clock', 'hostname', 'machine_id', 'boot_id', 'python_random', 'uuid'])
      assert.ok(receipt?.done.includes(step), step);
    // The answer may take its time on a busy host: the guest looked at its clock between the two.
    const before = Date.now();
    const guest = Number((await engine.eval(id, '__import__("time").time()')).result) * 1000;
    const after = Date.now();
    assert.ok(guest > before - 100 && guest < after + 100, `${guest} is not between ${before} and ${after}`);
  }
});

spares('one that waits is sealed, and is nobody: not listed, not reachable by name', async ({ engine, kept }) => {
  const [spare] = kept.take(1) as [Sandbox];
  try {
    assert.is(((await spare.call({ action: 'ping' }, 5000)) as PingReply).released, false);
    const reply = (await spare.call({ action: 'eval', code: '1 + 1' }, 5000)) as EvalReply;
    assert.match(reply.error ?? '', /^NotReleased/);
    assert.equal(engine.sandboxes, []);
  } finally {
    await end([spare]);
  }
});

spares('one that dies in its sleep is replaced by a fork', async ({ engine, kept }) => {
  const [victim, other] = kept.pids as [number, number];
  process.kill(victim, 'SIGKILL');
  // In the same turn of the event loop: its end has not been noticed.
  const { sandboxes } = await fork(engine, 2);
  const pids = sandboxes.map(({ vmm }) => vmm.pid);
  assert.ok(pids.includes(other) && !pids.includes(victim), `${pids}`);
  for (const { id } of sandboxes) assert.is((await engine.eval(id, '6 * 7')).result, '42');
});

spares('its end is noticed while it waits, and another is made', async ({ kept }) => {
  const [victim] = kept.take(1) as [Sandbox];
  await end([victim]);
  assert.is(kept.size, 1);
  await kept.fill();
  assert.is(kept.size, 2);
  assert.is(kept.problem, undefined);
});

spares('a request with a memory limit gets none: limits are set at birth', async ({ engine, kept }) => {
  const waiting = kept.pids;
  const { sandboxes, forkUs } = await fork(engine, 1, { memoryLimitMib: 256 });
  assert.is(forkUs.length, 1);
  assert.not.ok(waiting.includes(sandboxes[0]?.vmm.pid ?? 0));
});

spares('a child that was one is branched like any other', async ({ engine }) => {
  const { sandboxes, forkUs } = await fork(engine, 1);
  assert.is(forkUs.length, 0);
  const id = sandboxes[0]?.id as string;
  await engine.eval(id, 'import builtins\nbuiltins.kept = 17');
  const { template } = await engine.branch(id);
  const copies = await engine.forkFrom(template, { n: 2 });
  for (const copy of copies.sandboxes) assert.is((await engine.eval(copy.id, 'kept')).result, '17');
  await engine.retire(template);
});

spares('a cancelled fan-out ends those that it took', async ({ engine, kept }) => {
  const taken = kept.pids;
  const controller = new AbortController();
  const forking = engine.fork({ tag: BASE_TAG, n: 2 }, { signal: controller.signal });
  controller.abort();
  await forking.then(
    () => assert.unreachable(),
    (error: { code: string }) => assert.is(error.code, 'CANCELLED'),
  );
  await kept.fill();
  assert.is(kept.pids.filter((pid) => taken.includes(pid) && !existsSync(`/proc/${pid}`)).length, 0);
  assert.is(kept.size, 2);
});

spares(
  'short memory ends those that wait; a retired template leaves its children, and they their directory',
  async ({ engine, kept }) => {
    const { sandboxes } = await fork(engine, 1);
    const child = sandboxes[0] as Sandbox;
    await kept.fill();
    assert.is(await engine.relieve(0), 1);
    assert.is(kept.size, 0);
    assert.is((await engine.eval(child.id, '6 * 7')).result, '42');
    assert.ok(existsSync(child.birth.consolePath));
    await engine.kill([child]);
    await engine.close();
    assert.equal(readdirSync(world.env.TMPDIR), []);
    assert.equal(qemusOf(world.env.TMPDIR), []);
  },
);

spares.run();
