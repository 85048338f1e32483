/** Worker threads that end in the middle of a fork task. Real VMs; the threads are terminated from outside, as they come. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import type { Worker } from 'node:worker_threads';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { isUnreaped, parentOf, ticksNow } from '../../src/main/host/process.js';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import { endStrays } from '../../src/main/sandbox/strays.js';
import { isWarden } from '../../src/main/sandbox/warden.js';
import { native } from '../../src/native/binding.js';
import { BASE_TAG, eventually, qemusOf, sharedData } from '../support/world.js';

process.env['XDG_DATA_HOME'] = sharedData();

const workers = new Set<Worker>();
process.on('worker', (worker) => {
  workers.add(worker);
  worker.once('exit', () => workers.delete(worker));
});
const terminateAll = () => Promise.all([...workers].map((worker) => worker.terminate()));

/** Every VM of this process, whether the engine knows it or not. */
const ownVms = (): number[] => qemusOf('').filter((pid) => parentOf(pid) === process.pid);

/** First processes of their pid namespaces; one that nobody reaps counts too. */
const ownWardens = (): number =>
  readdirSync('/proc').filter((name) => parentOf(Number(name)) === process.pid && isWarden(Number(name))).length;

/** What a child owns here; worker threads come and go with eventfds and pipes of their own. */
const ownDescriptors = (): string[] =>
  readdirSync('/proc/self/fd')
    .map((fd) => `${fd}: ${linkOf(fd)} ${/^Pid:.*/m.exec(infoOf(fd))?.[0] ?? ''}`)
    .filter((text) => /: socket:|pidfd|forkd-fork/.test(text));

const infoOf = (fd: string): string => {
  try {
    return readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8');
  } catch {
    return '';
  }
};

const linkOf = (fd: string): string => {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return '';
  }
};

/** Each thread of it: signals are taken when a thread runs. */
const isStopped = (pid: number): boolean =>
  readdirSync(`/proc/${pid}/task`).every((tid) => /\) T /.test(readFileSync(`/proc/${pid}/task/${tid}/stat`, 'utf8')));

const worker = suite<{ engine: Engine }>('a worker dies');

worker.before((context) => {
  context.engine = new Engine();
});
worker.after(async ({ engine }) => {
  await engine.close();
  assert.equal(ownVms(), []);
  assert.ok(await eventually(() => ownWardens() === 0, 20_000));
});

const N = 16;

worker(
  'hot forks: those that answered live on, the rest are made cold or named, nothing is left over',
  async ({ engine }) => {
    // Once through all of it, so that what stays open is open.
    await engine.fork({ tag: BASE_TAG, n: 2 });
    await engine.kill(engine.sandboxes);
    const before = ownDescriptors();
    const fallbacks: string[] = [];
    for (const at of [1, 3, 5]) {
      let alive = 0;
      let fallback = '';
      let ended: Promise<unknown> | undefined;
      const { sandboxes, failures, mechanism } = await engine.fork(
        { tag: BASE_TAG, n: N },
        {
          onReady: (count) => {
            if (count !== at) return;
            alive = ownVms().length;
            ended = terminateAll();
          },
          onFallback: (reason) => {
            fallback = reason;
          },
        },
      );
      // Else a worker that is not gone yet, on a busy host, is given what comes next.
      await ended;
      assert.is(mechanism, 'hot-fork');
      assert.ok(alive >= at, `${alive} VMs when ${at} had answered`);
      fallbacks.push(fallback);
      assert.is(sandboxes.length + failures.length, N);
      // Two children are under way in each lane; no other can be lost.
      assert.ok(failures.length <= 2 * engine.pool.width, JSON.stringify(failures));
      for (const { error } of failures) assert.is(error.code, 'WORKER_DIED');
      const answers = await engine.callAll(sandboxes, () => ({ action: 'eval', code: '6 * 7' }), 60);
      for (const { reply, error } of answers)
        assert.is(reply && 'result' in reply ? reply.result : error?.message, '42');
      const known = new Set(sandboxes.map(({ vmm }) => vmm.pid));
      // Neither a child that nobody knows nor, a moment later, a process of the template that nobody can talk to any more. Where one
      // worker had done its part, or not begun it, that process lives on.
      const { lanes } = await engine.warm(BASE_TAG);
      for (const { vm } of lanes) known.add(vm.vmm.pid);
      const strangers = () => ownVms().filter((pid) => !known.has(pid));
      assert.ok(await eventually(() => strangers().length === 0), `${strangers()} are left`);
      await engine.kill(sandboxes);
      const again = await engine.fork({ tag: BASE_TAG, n: 2 });
      assert.equal([again.mechanism, again.failures], ['hot-fork', []]);
      await engine.kill(engine.sandboxes);
    }
    // On a busy host all may have been begun before the threads end; hardly each time.
    const told = fallbacks.filter((text) => text !== '');
    assert.ok(told.length > 0, 'none was restored cold');
    for (const text of told)
      assert.match(text, /restored cold: the worker thread died in the middle of its task \(hotfork\)/);
    assert.ok(
      await eventually(() => ownDescriptors().length <= before.length),
      `${before.join('\n')}\nand then\n${ownDescriptors().join('\n')}`,
    );
  },
);

worker('a branch: the next one is of the present, and nothing of the first is left', async ({ engine }) => {
  const { sandboxes } = await engine.fork({ tag: BASE_TAG, n: 1, branchable: true });
  const [source] = sandboxes as [Sandbox];
  const keep = (value: string) => engine.eval(source.id, `import builtins; builtins.kept = '${value}'`);
  await keep('before');
  const [vms, descriptors] = [ownVms(), ownDescriptors()];
  const began = ticksNow();
  const control = native.pidfdGetfd(source.vmm.pidfd, source.birth.numbers?.control ?? -1);
  process.kill(source.vmm.pid, 'SIGSTOP');
  assert.ok(await eventually(() => isStopped(source.vmm.pid), 20_000), 'it is stopped');
  const branch = engine.branch(source.id).then(
    () => undefined,
    (error: { code: string }) => error.code,
  );
  assert.ok(await eventually(() => native.pollReadable([control], 0).length > 0, 20_000), 'it is asked for the branch');
  native.fdClose(control);
  const ended = terminateAll();
  // The worker waits in a system call, which ends with the answer.
  process.kill(source.vmm.pid, 'SIGCONT');
  await ended;
  assert.is(await branch, 'WORKER_DIED');
  const unreaped = readdirSync('/proc').filter(
    (name) => parentOf(Number(name)) === process.pid && isUnreaped(Number(name), began),
  );
  assert.equal([ownVms(), unreaped], [vms, []]);
  assert.ok(await eventually(() => ownDescriptors().length <= descriptors.length), ownDescriptors().join('\n'));
  await keep('after');
  const { template } = await engine.branch(source.id);
  const { sandboxes: made } = await engine.forkFrom(template, { n: 1 });
  assert.is((await engine.eval((made[0] as Sandbox).id, 'kept')).result, "'after'");
  await engine.retire(template);
  await engine.kill(engine.sandboxes);
});

worker('a first process that somebody waits for is not waited for again', async ({ engine }) => {
  const { lanes } = await engine.warm(BASE_TAG);
  const living = lanes.map(({ vm }) => vm.vmm.pid);
  const before = ownDescriptors();
  await endStrays('/nowhere', new Set(living), ticksNow());
  assert.equal(ownDescriptors(), before);
});

worker('cold restores: an error that says so, no VM is left, the next request is served', async ({ engine }) => {
  const known = ownVms();
  const outcome = engine.fork({ tag: BASE_TAG, n: 4, cold: true }).then(
    ({ failures }) => failures.map(({ error }) => error.code),
    (error: { code: string }) => [error.code],
  );
  assert.ok(await eventually(() => ownVms().length > known.length, 20_000));
  await terminateAll();
  const codes = await outcome;
  assert.ok(codes.length > 0 && codes.every((code) => code === 'WORKER_DIED'), JSON.stringify(codes));
  await engine.kill(engine.sandboxes);
  assert.ok(await eventually(() => ownVms().length === known.length), `${ownVms().length}, not ${known.length}`);
  assert.ok(await eventually(() => ownWardens() <= 1), 'what is left is that of the template, if that lives');
  const { failures } = await engine.fork({ tag: BASE_TAG, n: 1, cold: true });
  assert.equal(failures, []);
  await engine.kill(engine.sandboxes);
});

worker.run();
