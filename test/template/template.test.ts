/** Templates under faults. Everything here is a real QEMU under the hot-fork shim. */
import { readdirSync, readlinkSync } from 'node:fs';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { makeCustody } from '../../src/contract/custody.js';
import type { EvalReply, ExecReply } from '../../src/contract/guest.js';
import type { HotChild } from '../../src/contract/task.js';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { MEMORY_FLOOR_BYTES } from '../../src/main/template/templates.js';
import { native } from '../../src/native/binding.js';
import { hotfork } from '../../src/workers/tasks/hotfork.js';
import { BASE_TAG, eventually, sharedData } from '../support/world.js';

process.env['XDG_DATA_HOME'] = sharedData();
const NUMPY = 'numpy.zeros(5).tolist()';
const ZEROS = '[0.0, 0.0, 0.0, 0.0, 0.0]';

const template = suite<{ engine: Engine }>('template');

template.before((context) => {
  context.engine = new Engine({ resident: true });
});
template.after(({ engine }) => engine.close());
template.after.each(({ engine }) => engine.kill(engine.sandboxes));

const answers = async (engine: Engine, children: Sandbox[], code = NUMPY): Promise<string[]> => {
  const results = await engine.callAll(children, () => ({ action: 'eval', code }), 60);
  return results.map(({ reply, error }) => (reply as EvalReply | undefined)?.result ?? error?.message ?? '');
};

const allRight = (n: number): string[] => Array.from({ length: n }, () => ZEROS);

template('one child, and fifty', async ({ engine }) => {
  for (const n of [1, 50]) {
    const { sandboxes, failures, mechanism } = await engine.fork({ tag: BASE_TAG, n });
    assert.equal([mechanism, failures], ['hot-fork', []]);
    assert.equal(await answers(engine, sandboxes), allRight(n));
  }
});

template('none and too many are refused', async ({ engine }) => {
  for (const n of [0, 5000]) {
    const error = await engine.fork({ tag: BASE_TAG, n }).then(
      () => undefined,
      (e: { code: string }) => e.code,
    );
    assert.is(error, 'COUNT_INVALID');
  }
});

template(
  'a template that is killed in the middle of a fan-out: everyone is served, those it made live on',
  async ({ engine }) => {
    const parent = await engine.warm(BASE_TAG);
    let killed = false;
    let fallback = '';
    const { sandboxes, failures } = await engine.fork(
      { tag: BASE_TAG, n: 24 },
      {
        onReady: (ready) => {
          if (killed || ready < 3) return;
          killed = true;
          for (const { vm } of parent.lanes) process.kill(vm.vmm.pid, 'SIGKILL');
        },
        onFallback: (reason) => {
          fallback = reason;
        },
      },
    );
    assert.equal(failures, []);
    assert.match(fallback, /restored cold/);
    assert.equal(await answers(engine, sandboxes), allRight(24));
    assert.ok(await eventually(() => !parent.isAlive));
    const again = await engine.fork({ tag: BASE_TAG, n: 2 });
    assert.is(again.mechanism, 'hot-fork');
    assert.is.not(await engine.warm(BASE_TAG), parent);
  },
);

template('a template that is dead before it is asked: all its children are given up, without waiting for them', () => {
  const [control, peer] = native.socketPair('seqpacket');
  native.fdClose(peer);
  const children: HotChild[] = [1, 2].map((index) => ({
    index,
    name: `child ${index}`,
    consolePath: '/dev/null',
    cgroupProcs: [],
    identity: {} as HotChild['identity'],
  }));
  const port = { controlFd: control, control: 3, qmp: 4, agent: 5, consoles: [], taps: [], others: [] };
  // The patience is longer than the runner has with this suite.
  const input = { port, children, answerMs: 2 ** 31 - 1, cancel: new Int32Array(1) };
  const { failures } = hotfork(input, () => undefined, makeCustody());
  native.fdClose(control);
  assert.equal(
    failures.map(({ index, error }) => [index, error.code]),
    [
      [1, 'HOTFORK_BROKEN'],
      [2, 'HOTFORK_BROKEN'],
    ],
  );
});

template('a stopped child does not hold up the others', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 3 });
  const [first, ...rest] = sandboxes as [Sandbox, ...Sandbox[]];
  process.kill(first.vmm.pid, 'SIGSTOP');
  assert.equal(await answers(engine, rest), allRight(2));
  const more = await engine.fork({ tag: BASE_TAG, n: 2 });
  assert.equal(await answers(engine, more.sandboxes), allRight(2));
  await engine.kill([first]);
  assert.is(first.state, 'dead');
});

template('a child that ends is noticed within 100 ms and named', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 6 });
  const [other, ...victims] = sandboxes as [Sandbox, ...Sandbox[]];
  const hold = setTimeout(() => undefined, 60_000);
  const took: number[] = [];
  for (const victim of victims) {
    const began = performance.now();
    process.kill(victim.vmm.pid, 'SIGKILL');
    await victim.ended;
    took.push(performance.now() - began);
    assert.match(victim.death().message, /signal SIGKILL/);
  }
  clearTimeout(hold);
  // The one in the middle: other suites run at the same time, and any one of these may have had to wait for a processor.
  assert.ok((took.sort((a, b) => a - b)[2] as number) < 100, `${took} ms`);
  assert.equal(await answers(engine, [other]), [ZEROS]);
});

template('fan-outs at once share the template', async ({ engine }) => {
  const all = await Promise.all(Array.from({ length: 10 }, () => engine.fork({ tag: BASE_TAG, n: 2 })));
  const children = all.flatMap((r) => r.sandboxes);
  assert.is(new Set(children.map((c) => c.id)).size, 20);
  for (const { sandboxes } of all) assert.equal(await answers(engine, sandboxes), allRight(2));
});

template('idle templates give way when memory runs short', async ({ engine }) => {
  const parent = await engine.warm(BASE_TAG);
  await engine.relieve(MEMORY_FLOOR_BYTES + 1);
  assert.ok(parent.isAlive);
  assert.is(await engine.relieve(MEMORY_FLOOR_BYTES - 1), 1);
  assert.not.ok(parent.isAlive);
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
  assert.equal(await answers(engine, sandboxes), [ZEROS]);
});

template('a running child is branched; source, branch and branch of the branch diverge', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
  const generations = [sandboxes[0] as Sandbox];
  const templates = [];
  for (const depth of [0, 1, 2]) {
    const source = generations[depth] as Sandbox;
    await engine.eval(source.id, `import builtins; builtins.trail = getattr(builtins, "trail", "") + "${depth}"`);
    const branch = await engine.branch(source.id);
    templates.push(branch.template);
    const { sandboxes: made } = await engine.forkFrom(branch.template, { n: 1 });
    generations.push(made[0] as Sandbox);
    await engine.eval(source.id, 'import builtins; builtins.trail += "x"');
  }
  const trail = await Promise.all(
    generations.map(async ({ id }) => (await engine.eval(id, 'import builtins; builtins.trail')).result),
  );
  assert.equal(trail, ["'0x'", "'01x'", "'012x'", "'012'"]);
  const hosts = await Promise.all(
    generations.map(async ({ id }) => (await engine.exec(id, ['hostname'])).stdout.trim()),
  );
  assert.equal(
    hosts,
    generations.map((g) => g.id),
  );
  for (const one of templates) await engine.retire(one);
});

template('a branch: many children, and calls under way in the source go on', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1 });
  const source = sandboxes[0] as Sandbox;
  const under = engine.exec(source.id, ['sh', '-c', 'echo a; sleep 1; echo b']);
  const long = engine.eval(source.id, 'import time; time.sleep(1); "slept"');
  await new Promise((resolve) => setTimeout(resolve, 200));
  const branch = await engine.branch(source.id);
  assert.ok(branch.pause_us > 0);
  const { sandboxes: made } = await engine.forkFrom(branch.template, { n: 5 });
  assert.equal(await answers(engine, made), allRight(5));
  assert.is((await under).stdout, 'a\nb\n');
  assert.is((await long).result, "'slept'");
  await engine.retire(branch.template);
  assert.equal(await answers(engine, made), allRight(5));
});

template('a child that was restored cold cannot be branched, and says why', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1, cold: true });
  const error = await engine.branch((sandboxes[0] as Sandbox).id).then(
    () => undefined,
    (e: { code: string; message: string }) => e,
  );
  assert.is(error?.code, 'BRANCH_UNSUPPORTED');
  assert.match(error?.message ?? '', /restored cold/);
});

template('files written by children are their own', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 4 });
  const results = await engine.callAll(
    sandboxes,
    (s) => ({
      action: 'exec',
      args: ['sh', '-c', `cat /root/f 2>/dev/null; echo ${s.birth.index} > /root/f; sync; cat /root/f`],
    }),
    60,
  );
  assert.equal(
    results.map((r) => (r.reply as ExecReply).stdout),
    ['1\n', '2\n', '3\n', '4\n'],
  );
});

template('nothing leaks over many forks', async ({ engine }) => {
  await engine.fork({ tag: BASE_TAG, n: 10 });
  await engine.kill(engine.sandboxes);
  // What a child owns here; worker threads come and go with eventfds and pipes of their own.
  const owned = /^socket:|pidfd|memfd|forkd-fork/;
  const descriptors = () => readdirSync('/proc/self/fd').filter((fd) => owned.test(linkOf(fd))).length;
  const before = descriptors();
  for (let i = 0; i < 10; i++) {
    await engine.fork({ tag: BASE_TAG, n: 20 });
    await engine.kill(engine.sandboxes);
  }
  assert.ok(await eventually(() => descriptors() <= before), `${before}, then ${descriptors()}`);
  assert.equal(engine.sandboxes, []);
});

const linkOf = (fd: string): string => {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return '';
  }
};

template.run();
