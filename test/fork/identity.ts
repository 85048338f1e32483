/** What forking is for: children that are right, unique and apart. One fan-out of ten, asked everything, for either mechanism. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import type { EvalReply, ExecReply } from '../../src/contract/guest.js';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { BASE_TAG, sharedData } from '../support/world.js';

const N = 10;
process.env['XDG_DATA_HOME'] = sharedData();

const rootfsDigest = (engine: Engine): string => {
  const { rootfs } = engine.store.open(BASE_TAG);
  return createHash('sha256').update(readFileSync(rootfs)).digest('hex');
};

const evalAll = async (
  { engine, children }: { engine: Engine; children: Sandbox[] },
  code: string,
): Promise<string[]> => {
  const results = await engine.callAll(children, () => ({ action: 'eval', code }), 30);
  return results.map(({ reply, error }) => {
    assert.is(error, undefined);
    assert.is(reply?.error, undefined);
    return (reply as EvalReply).result ?? '';
  });
};

export const identitySuite = (cold: boolean) => {
  const identity = suite<{ engine: Engine; children: Sandbox[]; digest: string }>(
    cold ? 'cold identity' : 'hot identity',
  );

  identity.before(async (context) => {
    context.engine = new Engine();
    context.digest = rootfsDigest(context.engine);
    const { sandboxes, mechanism } = await context.engine.fork({ tag: BASE_TAG, n: N, cold });
    assert.is(mechanism, cold ? 'cold-restore' : 'hot-fork');
    context.children = sandboxes;
  });
  identity.after(({ engine }) => engine.close());

  identity('each child answers rightly', async (context) => {
    const answers = await evalAll(context, 'numpy.zeros(5).tolist()');
    assert.equal(
      answers,
      Array.from({ length: N }, () => '[0.0, 0.0, 0.0, 0.0, 0.0]'),
    );
  });

  for (const [what, code] of [
    ['os.urandom', 'import os; os.urandom(8).hex()'],
    ['random.random', 'import random; random.random()'],
    ['numpy.random.rand', 'numpy.random.rand()'],
    ['numpy default_rng', 'numpy.random.default_rng().random()'],
    ['uuid1', 'import uuid; uuid.uuid1()'],
    ['uuid4', 'import uuid; uuid.uuid4()'],
    ['ssl', 'import ssl; ssl.RAND_bytes(8).hex()'],
    ['tempfile', 'import tempfile; next(tempfile._get_candidate_names())'],
    ['hostname', 'import socket; socket.gethostname()'],
    ['machine-id', 'open("/etc/machine-id").read()'],
  ] as const) {
    identity(`no two children share ${what}`, async (context) => {
      const values = await evalAll(context, code);
      assert.is(new Set(values).size, N, values.join(' '));
    });
  }

  identity(
    'emulated programs are at fixed addresses, until a sandbox wants it otherwise',
    async ({ engine, children }) => {
      const [one, two] = children as [Sandbox, Sandbox];
      const stackOf = async ({ id }: Sandbox) =>
        (await engine.exec(id, ['grep', '-F', '[stack]', '/proc/self/maps'])).stdout;
      const [first, again, other] = [await stackOf(one), await stackOf(one), await stackOf(two)];
      assert.match(first, /^[0-9a-f]+-[0-9a-f]+ /);
      assert.is(first === again && first === other, one.birth.isolation === 'tcg');
      await engine.exec(two.id, ['sh', '-c', 'echo 2 > /proc/sys/kernel/randomize_va_space']);
      assert.is.not(await stackOf(two), await stackOf(two));
    },
  );

  identity('the clock is within 100 ms of the host’s', async ({ engine, children }) => {
    for (const { id } of children) {
      const before = Date.now();
      const guest = Number((await engine.eval(id, 'import time; time.time()')).result) * 1000;
      const after = Date.now();
      assert.ok(guest > before - 100 && guest < after + 100, `${guest - before} ms, asked in ${after - before} ms`);
    }
  });

  identity('the receipt says what was done, and is in the record', ({ children }) => {
    for (const child of children) {
      const receipt = child.info().receipt;
      for (const step of [
        'kernel_rng',
        'clock',
        'hostname',
        'machine_id',
        'python_random',
        'numpy_random',
        'uuid',
        'openssl',
      ]) {
        assert.ok(receipt?.done.includes(step), `${step} in ${receipt?.done}`);
      }
      assert.equal(receipt?.failed, {});
    }
    assert.is(new Set(children.map((c) => c.receipt?.boot_id)).size, N);
  });

  identity('children do not see each other’s files, and the image does not change', async (context) => {
    const { engine, children } = context;
    const write = (s: Sandbox) => ({
      action: 'exec' as const,
      args: ['sh', '-c', `echo ${s.id} > /root/mine && sync && cat /root/mine`],
    });
    const results = await engine.callAll(children, write, 60);
    for (const { error } of results) assert.is(error, undefined, error?.message);
    assert.equal(
      results.map((r) => (r.reply as ExecReply).stdout.trim()),
      children.map((c) => c.id),
    );
    assert.equal(
      await evalAll(context, 'open("/root/mine").read().strip()'),
      children.map((c) => `'${c.id}'`),
    );
    assert.is(rootfsDigest(engine), context.digest);
  });

  identity('children do not see each other’s memory', async (context) => {
    const { engine, children } = context;
    await engine.callAll(
      children,
      (s) => ({ action: 'eval', code: `import builtins; builtins.mine = ${s.birth.index}` }),
      30,
    );
    assert.equal(
      await evalAll(context, 'import builtins; builtins.mine'),
      children.map((c) => String(c.birth.index)),
    );
  });

  identity('each child is a process of its own, under emulation, and says so', ({ children }) => {
    assert.is(new Set(children.map((c) => c.vmm.pid)).size, N);
    for (const child of children) {
      assert.is(child.info().isolation, 'tcg');
      assert.match(readFileSync(join('/proc', String(child.vmm.pid), 'cmdline'), 'utf8'), /qemu-system/);
    }
  });

  identity('a killed child is noticed at once and named', async ({ engine, children }) => {
    const victim = children[0] as Sandbox;
    const began = performance.now();
    // A watch does not keep the process alive; a suite that waits for one must.
    const hold = setTimeout(() => undefined, 10_000);
    process.kill(victim.vmm.pid, 'SIGKILL');
    const status = await victim.ended;
    clearTimeout(hold);
    assert.ok(performance.now() - began < 1000);
    assert.is(status.signal, 9);
    const error = await engine.eval(victim.id, '1').then(
      () => undefined,
      (e: unknown) => e,
    );
    assert.match(String(error), /not found|SIGKILL/);
    assert.match(victim.death().message, /child 1: QEMU ended \(signal SIGKILL\)/);
  });

  identity('a guest that panics is named with what its kernel said', async ({ engine, children }) => {
    const victim = children[1] as Sandbox;
    const [result] = await engine.callAll(
      [victim],
      () => ({ action: 'exec', args: ['sh', '-c', 'echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger'] }),
      30,
    );
    assert.is(result?.error?.code, 'GUEST_PANIC', JSON.stringify(result));
    assert.match(result?.error?.message ?? '', /sysrq triggered crash/);
  });

  return identity;
};
